"""The contract of a task: data that lies in memory as tensors, a metric, and honest baselines.

A task is one file in ``attnlab/tasks/``, found by its presence, with one class that subclasses `Task`. Its class
attributes are literals, so that they can be listed without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.errors import UserError
from attnlab.network import Inputs, Outputs

IGNORE = -100
"""The target of a position at which nothing is asked."""


class Split(NamedTuple):
    """Examples: ``x`` (B, N) or (B, N, F), ``lengths`` (B,) where some are padded, and what is asked.

    ``y`` is (B, slots) whole numbers for outputs of ``classes``, (B, N) for ``tokens`` with `IGNORE` where nothing is
    asked, (B, slots) numbers for ``values``.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None


class Baseline(NamedTuple):
    """Another way to do the same, on the same test split, in the same metric."""

    name: str
    value: float


@dataclass(frozen=True)
class Request:
    """What the user asked of a task.

    Args:
        seed: decides the split, or what is drawn.
        val_fraction: the part of the training data that is held out to choose the best model by.
        seq_length: tokens a sequence; None for the task's own.
        data: the user's own file.
        target: the column to predict in it.
    """

    seed: int = 0
    val_fraction: float = 0.1
    seq_length: int | None = None
    data: Path | None = None
    target: str | None = None


@dataclass(frozen=True)
class Problem:
    """A task at one seed and size, ready to train on.

    ``encoding`` is plain JSON: all that is needed to read more of the same data later, and to name the answers.
    ``facts`` are printed before training starts: what the task understood, a line each.
    The targets of ``values`` are standardised; ``unit`` is the factor back to the user's units.
    """

    train: Split
    validation: Split
    test: Split
    inputs: Inputs
    outputs: Outputs
    length: int
    metric: Literal["accuracy", "bits_per_byte", "rmse"]
    causal: bool = False
    pool: Literal["mean", "last"] = "mean"
    unit: float = 1.0
    encoding: dict[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    baselines: Callable[[], list[Baseline]] = list

    def __post_init__(self) -> None:
        """Hold the targets to what the outputs say: a wrong shape would be broadcast into a wrong metric."""
        for part in (self.train, self.validation, self.test):
            second = part.x.shape[1] if self.outputs.kind == "tokens" else self.outputs.slots
            if part.y.shape != (len(part.x), second):
                raise ValueError(
                    f"y has shape {tuple(part.y.shape)}; {self.outputs.kind} want {(len(part.x), second)} here"
                )


class Task:
    """One thing to train on."""

    summary: ClassVar[str]
    """One line: what is asked."""
    remark: ClassVar[str] = ""
    """One honest line about what a result here does and does not say; printed below every result."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """The files that ``--data`` may name; with none, the task makes or ships its own data."""
    needs_data: ClassVar[bool] = False
    """Whether there is nothing to train on without ``--data``."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Training options that differ from the general defaults, by their flag's name."""

    def load(self, request: Request) -> Problem:
        """The data, split.

        Raises:
            UserError: when the file, or what was asked, does not fit.
        """
        raise NotImplementedError

    def columns(self, path: Path) -> dict[str, str]:
        """The columns of a file that may be the ``--target``, each with its type; none where a file has no columns.

        Raises:
            UserError: when the file cannot be read.
        """
        return {}

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """More of the same data, to predict on; ``y`` is empty. Here: ``x`` of an .npz file.

        Raises:
            UserError: when the file does not fit what the network was trained on.
        """
        return Split(read_x(path, inputs, length), torch.empty(0))

    def answers(self, outputs: Outputs, scores: Tensor, split: Split, encoding: dict[str, Any]) -> list[dict[str, Any]]:
        """The network's scores for a split in words: a row an example."""
        labels = encoding.get("labels")

        def name(index: int) -> Any:
            return index if labels is None else labels[index]

        if outputs.kind == "values":
            mean, unit = encoding.get("mean", 0.0), encoding.get("unit", 1.0)
            return [{"prediction": _one(row)} for row in (scores * unit + mean).tolist()]
        best = scores.softmax(-1).max(-1)
        return [
            {"prediction": _one([name(i) for i in indices]), "probability": _one([round(p, 4) for p in values])}
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, by name; nothing in it is executed.

    Raises:
        UserError: for a file that is none, or holds Python objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    except Exception as error:  # a damaged archive fails in many ways
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{path} is no readable .npz file ({reason}); make one with numpy.savez(path, x=x, y=y)"
        ) from None


def read_x(path: Path, inputs: Inputs, length: int) -> Tensor:
    """``x`` of an .npz file, checked against what a network takes."""
    arrays = read_arrays(path)
    if "x" not in arrays:
        raise UserError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected an array called x")
    x = arrays["x"]
    tokens = inputs.kind == "tokens"
    wanted = f"(batch, at most {length})" if tokens else f"(batch, at most {length}, {inputs.size})"
    if x.ndim != (2 if tokens else 3) or not 1 <= x.shape[1] <= length or (not tokens and x.shape[2] != inputs.size):
        raise UserError(f"x in {path} has shape {x.shape}; expected {wanted}")
    if not np.issubdtype(x.dtype, np.integer if tokens else np.number):
        raise UserError(f"x in {path} has dtype {x.dtype}; expected {'whole numbers' if tokens else 'numbers'}")
    if tokens and x.size and not 0 <= x.min() <= x.max() < inputs.size:
        raise UserError(f"x in {path} holds {x.min()} to {x.max()}; expected tokens from 0 to {inputs.size - 1}")
    if not tokens and not np.isfinite(x).all():
        raise UserError(f"x in {path} holds NaN or infinity; replace or drop those rows")
    return torch.from_numpy(x.astype(np.int64 if tokens else np.float32))


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
