"""The user's own arrays: sequences and an answer each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.errors import UserError
from attnlab.network import Inputs
from attnlab.task import Problem, Request, Split, Task, read_arrays, read_x
from attnlab.tasks._requests import check_file, takes
from attnlab.tasks._supervised import Rows, standardise, supervised

MOST_TOKENS = 1_000_000


class Arrays(Task):
    """``x`` (B, N, D) numbers, or (B, N) whole numbers as tokens; ``y`` (B,), classes or quantities.

    Every number of a sequence is standardised by its mean and spread in the training data.
    """

    summary = "your own arrays: x (B, N, D) or tokens (B, N), and y (B,), in an .npz file"
    suffixes = (".npz",)
    needs_data = True

    def load(self, request: Request) -> Problem:
        """Read, check and split ``x`` and ``y``.

        Raises:
            UserError: for a file, a shape or a value that does not fit.
        """
        takes(request, "arrays", "data")
        if request.data is None:
            raise UserError("arrays needs a file of yours: give --data FILE.npz with the arrays x and y")
        check_file(request.data, "arrays", self.suffixes)
        x, y = read_x_and_y(request.data)
        tokens = x.ndim == 2
        inputs = Inputs("tokens", int(x.max()) + 1) if tokens else Inputs("vectors", x.shape[2])
        kind = f"{inputs.size} kinds of tokens" if tokens else f"{x.shape[2]} numbers a token"
        facts = (f"{request.data}: {len(x):,} sequences of {x.shape[1]}, {kind}",)
        return supervised(Rows(x, y, inputs, facts=facts), request, name="y")

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """``x`` of an .npz file, standardised as in training."""
        check_file(path, "arrays", self.suffixes)
        x = read_x(path, inputs, length)
        if inputs.kind == "vectors":
            x = torch.from_numpy(standardise(x.numpy(), encoding))
        return Split(x, torch.empty(0))


def read_x_and_y(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """``x`` and ``y`` of an .npz file, without pickle.

    Raises:
        UserError: for a file that cannot be read, or arrays that do not fit each other.
    """
    found = read_arrays(path)
    for name in ("x", "y"):
        if name not in found:
            raise UserError(f"{path} holds {', '.join(found) or 'nothing'}; expected x and y, and {name} is not there")
    x, y = found["x"], found["y"]
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(f"x in {path} has shape {x.shape}; expected (B, N, D), or (B, N) for tokens, none of them 0")
    if y.shape != x.shape[:1]:
        raise UserError(f"y in {path} has shape {y.shape}; expected {x.shape[:1]}, an answer for each of x")
    if not (np.issubdtype(y.dtype, np.number) or y.dtype.kind in "bU") or np.iscomplexobj(y):
        raise UserError(f"y in {path} has dtype {y.dtype}; expected numbers, words or truth values")
    if x.ndim == 2:
        if not np.issubdtype(x.dtype, np.integer):
            raise UserError(
                f"x in {path} has shape {x.shape} and dtype {x.dtype}; expected whole numbers for (B, N) tokens, "
                "or (B, N, 1) for one number a token"
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
    if not np.isfinite(x).all():
        raise UserError(f"x in {path} holds NaN or infinity, first in sequence {bad(x)}; replace or drop those rows")
    return x.astype(np.float32), y


def bad(x: NDArray[Any]) -> int:
    """The first of (B, ...) that holds NaN or infinity."""
    return int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])
