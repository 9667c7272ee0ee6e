"""The user's own arrays: sequences with one target each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from attnlab.files import npz
from attnlab.network import Inputs
from attnlab.tasks._baselines import flattened
from attnlab.tasks._options import check_file, check_options
from attnlab.tasks._split import Rows
from attnlab.tasks._standardize import mean_and_std, standardize
from attnlab.tasks._supervised import Encoded, supervised
from attnlab.tasks.base import Split, Task, TaskConfig, TaskData, read_x
from attnlab.tasks.tables.target import Locate, encode_target, read_target
from attnlab.tasks.tables.values import LARGEST
from attnlab.utils.errors import UserError

MAX_TOKENS = 1_000_000


class Arrays(Task):
    """``x`` (B, N, D) values, or (B, N) integer tokens; ``y`` (B,), classes or numbers.

    Each of the N · D values is standardized by its mean and standard deviation in the training data, in float64.
    """

    summary = "your own arrays: x (B, N, D) or tokens (B, N), and y (B,), in an .npz file"
    suffixes = (".npz",)
    needs_data = True

    def load(self, config: TaskConfig) -> TaskData:
        """Read, check and split ``x`` and ``y``."""
        check_options(config, "arrays", "data", "target_type")
        if config.data is None:
            raise UserError("arrays needs your own file: give --data FILE.npz with the arrays x and y")
        check_file(config.data, "arrays", self.suffixes)
        x, y = read_x_and_y(config.data)
        tokens = x.ndim == 2
        inputs = Inputs("tokens", int(x.max()) + 1) if tokens else Inputs("vectors", x.shape[2])
        kind = f"{inputs.size} kinds of tokens" if tokens else f"{x.shape[2]} values per token"

        def encoded(train: Rows) -> Encoded:
            if tokens:
                return Encoded(x, inputs, x.shape[1], None, {}, flattened(x))
            shift, scale = mean_and_std(x[train])
            standard = standardize(x, shift, scale, far_from(x, config.data))
            encoding = {"shift": shift.tolist(), "scale": scale.tolist()}
            return Encoded(standard, inputs, x.shape[1], None, encoding, flattened(standard))

        return supervised(
            read_target(y, config.target_type, locate=locator(config.data)),
            x.reshape(len(x), -1),
            encoded,
            config,
            locate=locator(config.data),
            summary_lines=(f"{config.data}: {len(x):,} sequences of {x.shape[1]}, {kind}",),
        )

    def read(
        self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any], *, labelled: bool = False
    ) -> Split:
        """``x``, standardized as in training, and ``y``, empty if it is missing or invalid and not ``labelled``."""
        check_file(path, "arrays", self.suffixes)
        x, y = read_x(path, inputs, length), torch.empty(0)
        if inputs.kind == "vectors":
            numbers = x.numpy()
            refuse_large(numbers, path)
            shift, scale = (np.array(encoding[name])[: x.shape[1]] for name in ("shift", "scale"))
            x = torch.from_numpy(standardize(numbers, shift, scale, far_from(numbers, path)))
        try:
            targets = read_y(path, npz.Arrays(path), len(x))
            y = encode_target(targets, encoding, locate=locator(path), gaps=not labelled)
        except UserError:
            if labelled:
                raise
        return Split(x, y)

    def read_labelled(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The same, with the targets."""
        return self.read(path, inputs, length, encoding, labelled=True)


def read_x_and_y(path: Path) -> tuple[NDArray[Any], pl.Series]:
    """``x`` as in the file (tokens as int64), and ``y``; UserError for arrays that do not match."""
    arrays = npz.Arrays(path)
    if "x" not in arrays:
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected x and y, but x is missing")
    x = arrays["x"]
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(f"x in {path} has shape {x.shape}; expected (B, N, D), or (B, N) for tokens, with no axis of 0")
    y = read_y(path, arrays, len(x))
    if x.ndim == 2:
        if not np.issubdtype(x.dtype, np.integer):
            raise UserError(
                f"x in {path} has shape {x.shape} and dtype {x.dtype}; expected integers for (B, N) tokens, "
                "or (B, N, 1) for one value per token"
            )
        if x.min() < 0:
            raise UserError(f"x in {path} holds the token {x.min()}; tokens are counted from 0")
        if x.max() >= MAX_TOKENS:
            raise UserError(f"x in {path} holds the token {x.max():,}; at most {MAX_TOKENS:,} kinds are supported")
        return x.astype(np.int64), y
    if x.dtype.kind not in "biuf":
        raise UserError(f"x in {path} has dtype {x.dtype}; expected numbers")
    finite = np.isfinite(x)
    if not finite.all():
        row = first(~finite)[0]
        raise UserError(f"x in {path} holds NaN or infinity, first in sequence {row}; replace or drop those rows")
    refuse_large(x, path)
    return x, y


def read_y(path: Path, arrays: Mapping[str, NDArray[Any]], rows: int) -> pl.Series:
    """``y`` among the arrays of a file: one target per sequence; UserError if it is missing, or has another shape."""
    if "y" not in arrays:
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected x and y, but y is missing")
    y = arrays["y"]
    if y.shape != (rows,):
        raise UserError(f"y in {path} has shape {y.shape}; expected {(rows,)}, one target for each sequence of x")
    if y.dtype.kind not in "biufU":
        raise UserError(f"y in {path} has dtype {y.dtype}; expected numbers, strings or Booleans")
    return pl.Series("y", y.astype(np.float64) if y.dtype.kind == "f" else y)


def refuse_large(x: NDArray[Any], path: Path) -> None:
    """Raise UserError for the first value that float32 cannot represent, with its index."""
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
    """The error for a value that is too far from the training rows for float32."""

    def refuse(row: int, number: int) -> UserError:
        at = (row, *map(int, np.unravel_index(number, x.shape[1:])))
        return UserError(
            f"x{list(at)} in {path} is {x[at]:g}, too far from this value in the training rows for "
            "float32; correct it, or leave the sequence out"
        )

    return refuse


def locator(path: Path | None) -> Locate:
    """Names an index of ``y`` in messages."""
    return lambda row: f"y[{row}] of {path}"


def first(where: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(map(int, np.unravel_index(int(where.argmax()), where.shape)))
