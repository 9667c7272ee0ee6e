"""The user's own arrays: sequences and an answer each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from attnlab.files.npz import read_arrays
from attnlab.network import Inputs
from attnlab.tasks._baselines import flattened
from attnlab.tasks._requests import check_file, takes
from attnlab.tasks._split import Rows
from attnlab.tasks._supervised import Encoded, standardize, standards, supervised
from attnlab.tasks._target import Place, encode_target, read_target
from attnlab.tasks._values import LARGEST
from attnlab.tasks.base import Split, Task, TaskConfig, TaskData, read_x
from attnlab.utils.errors import UserError

MOST_TOKENS = 1_000_000


class Arrays(Task):
    """``x`` (B, N, D) numbers, or (B, N) whole numbers as tokens; ``y`` (B,), classes or quantities.

    Every number of a sequence is standardized by its mean and spread in the training data, in float64.
    """

    summary = "your own arrays: x (B, N, D) or tokens (B, N), and y (B,), in an .npz file"
    suffixes = (".npz",)
    needs_data = True

    def load(self, config: TaskConfig) -> TaskData:
        """Read, check and split ``x`` and ``y``.

        Raises:
            UserError: for a file, a shape or a value that does not fit.
        """
        takes(config, "arrays", "data", "target_type")
        if config.data is None:
            raise UserError("arrays needs a file of yours: give --data FILE.npz with the arrays x and y")
        check_file(config.data, "arrays", self.suffixes)
        x, y = read_x_and_y(config.data)
        tokens = x.ndim == 2
        inputs = Inputs("tokens", int(x.max()) + 1) if tokens else Inputs("vectors", x.shape[2])
        kind = f"{inputs.size} kinds of tokens" if tokens else f"{x.shape[2]} numbers per token"

        def encoded(train: Rows) -> Encoded:
            if tokens:
                return Encoded(x, inputs, x.shape[1], None, {}, flattened(x))
            shift, scale = standards(x[train])
            standard = standardize(x, shift, scale, far_from(x, config.data))
            encoding = {"shift": shift.tolist(), "scale": scale.tolist()}
            return Encoded(standard, inputs, x.shape[1], None, encoding, flattened(standard))

        return supervised(
            read_target(series(y), config.target_type, place=places("y", config.data)),
            x.reshape(len(x), -1),
            encoded,
            config,
            place=places("y", config.data),
            summary_lines=(f"{config.data}: {len(x):,} sequences of {x.shape[1]}, {kind}",),
        )

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """``x``, standardized as in training, and ``y`` where the file holds one that can be read.

        Raises:
            UserError: for an ``x`` that does not fit what the network was trained on.
        """
        return self._sequences(path, inputs, length, encoding, labelled=False)

    def read_labelled(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The same, with ``y``.

        Raises:
            UserError: as `read`, and for a ``y`` that is not there, or does not fit.
        """
        return self._sequences(path, inputs, length, encoding, labelled=True)

    def _sequences(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any], *, labelled: bool) -> Split:
        check_file(path, "arrays", self.suffixes)
        x, y = read_x(path, inputs, length), torch.empty(0)
        if inputs.kind == "vectors":
            numbers = x.numpy()
            refuse_large(numbers, path)
            shift, scale = (np.array(encoding[name])[: x.shape[1]] for name in ("shift", "scale"))
            x = torch.from_numpy(standardize(numbers, shift, scale, far_from(numbers, path)))
        try:
            answers = read_y(path, read_arrays(path), len(x))
            found = encode_target(series(answers), encoding, place=places("y", path), gaps=not labelled)
            y = torch.from_numpy(found if "labels" in encoding else found.astype(np.float32)).unsqueeze(1)
        except UserError:
            if labelled:
                raise
        return Split(x, y)


def read_x_and_y(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """``x`` as it stands in the file (tokens as int64), and ``y``.

    Raises:
        UserError: for a file that cannot be read, or arrays that do not fit each other.
    """
    found = read_arrays(path)
    if "x" not in found:
        raise UserError(f"{path} holds {', '.join(found) or 'nothing'}; expected x and y, and x is not there")
    x = found["x"]
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(f"x in {path} has shape {x.shape}; expected (B, N, D), or (B, N) for tokens, none of them 0")
    y = read_y(path, found, len(x))
    if x.ndim == 2:
        if not np.issubdtype(x.dtype, np.integer):
            raise UserError(
                f"x in {path} has shape {x.shape} and dtype {x.dtype}; expected whole numbers for (B, N) tokens, "
                "or (B, N, 1) for one number per token"
            )
        if x.min() < 0:
            raise UserError(f"x in {path} holds the token {x.min()}; tokens count from 0")
        if x.max() >= MOST_TOKENS:
            raise UserError(
                f"x in {path} holds the token {x.max():,}; more than {MOST_TOKENS:,} kinds are not embedded"
            )
        return x.astype(np.int64), y
    if x.dtype.kind not in "biuf":
        raise UserError(f"x in {path} has dtype {x.dtype}; expected numbers")
    finite = np.isfinite(x)
    if not finite.all():
        row = first(~finite)[0]
        raise UserError(f"x in {path} holds NaN or infinity, first in sequence {row}; replace or drop those rows")
    refuse_large(x, path)
    return x, y


def read_y(path: Path, found: Mapping[str, NDArray[Any]], rows: int) -> NDArray[Any]:
    """``y`` among the arrays of a file: one answer per sequence.

    Raises:
        UserError: where it is not there, or has another shape or type.
    """
    if "y" not in found:
        raise UserError(f"{path} holds {', '.join(found) or 'nothing'}; expected x and y, and y is not there")
    y = found["y"]
    if y.shape != (rows,):
        raise UserError(f"y in {path} has shape {y.shape}; expected {(rows,)}, an answer for each of x")
    if y.dtype.kind not in "biufU":
        raise UserError(f"y in {path} has dtype {y.dtype}; expected numbers, words or truth values")
    return y


def refuse_large(x: NDArray[Any], path: Path) -> None:
    """Refuse numbers that float32 cannot hold.

    Raises:
        UserError: with the first, and its place.
    """
    if x.dtype.kind != "f" or x.dtype.itemsize <= 4:
        return
    large = np.abs(x) > LARGEST
    if large.any():
        at = first(large)
        raise UserError(
            f"x{list(at)} in {path} is {x[at]:g}; a network computes in float32, up to {LARGEST:.2g}: give x in a "
            "larger unit"
        )


def far_from(x: NDArray[Any], path: Path | None) -> Any:
    """The error for a number that is too far from the training rows to compute with."""

    def refuse(row: int, number: int) -> UserError:
        at = (row, *map(int, np.unravel_index(number, x.shape[1:])))
        return UserError(
            f"x{list(at)} in {path} is {x[at]:g}, too far from the same number of the training rows to compute with in "
            "float32; correct it, or leave the sequence out"
        )

    return refuse


def series(y: NDArray[Any]) -> pl.Series:
    """``y`` as a column."""
    return pl.Series("y", y.astype(np.float64) if y.dtype.kind == "f" else y)


def places(name: str, path: Path | None) -> Place:
    """Where a number of an array stands."""
    return lambda row: f"{name}[{row}] of {path}"


def first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(map(int, np.unravel_index(int(where.argmax()), where.shape)))
