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
from torch import Tensor

from attnlab.files.npz import Arrays
from attnlab.network import Inputs, Network, Outputs
from attnlab.utils.errors import UserError

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


MOST_PROBABILITIES = 1_000
"""Of more classes, only the probability of the predicted one is given."""
UNSEEN = -1
"""The target of a row whose label was not among the classes that the network was trained on."""


class Baseline(NamedTuple):
    """A simpler method on the same test split; ``values`` holds its metrics by name, such as ``accuracy``."""

    name: str
    values: dict[str, float]


class ColumnUse(NamedTuple):
    """What a task made of one column of the user's file: ``use`` (``number``, ``left out`` ...) and why."""

    name: str
    use: str
    why: str


@dataclass(frozen=True)
class TaskConfig:
    """What the user asked of a task.

    Args:
        seed: decides the split, or what is drawn.
        val_fraction: the part of the training data that is held out to choose the best model by.
        seq_length: tokens a sequence; None for the task's own.
        data: the user's own file.
        target: the column to predict in it.
        target_type: whether the target is a ``class`` or a ``number``; None to decide by its values.
        features: the columns to use; None for all that can be used.
        ignore: columns that are not used.
        missing: what is done about missing values: ``mean`` fills them, ``error`` refuses them, ``drop`` leaves their
            rows out.
        split_by: the unit in which a text is split: ``lines``, ``paragraphs`` or ``position``; None to decide by the
            text.
        header: whether the first line of a table names its columns.
    """

    seed: int = 0
    val_fraction: float = 0.1
    seq_length: int | None = None
    data: Path | None = None
    target: str | None = None
    target_type: Literal["class", "number"] | None = None
    features: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    missing: Literal["mean", "error", "drop"] = "mean"
    split_by: Literal["lines", "paragraphs", "position"] | None = None
    header: bool = True


@dataclass(frozen=True)
class TaskData:
    """A task at one seed and size, ready to train on.

    ``encoding`` is plain JSON: all that is needed to read more of the same data later, and to name the answers.
    ``facts`` are printed before training starts: what the task understood, a line each; ``columns`` likewise, a row
    per column of the user's table.
    The targets of ``values`` are standardised; ``unit`` is the factor back to the user's units.
    ``metric`` decides which network is the best: one of those that `attnlab.training.metrics` computes.
    """

    train: Split
    validation: Split
    test: Split
    inputs: Inputs
    outputs: Outputs
    length: int
    metric: str
    causal: bool = False
    pool: Literal["mean", "last"] = "mean"
    unit: float = 1.0
    encoding: dict[str, Any] = field(default_factory=dict)
    summary_lines: tuple[str, ...] = ()
    columns: tuple[ColumnUse, ...] = ()
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
    caveat: ClassVar[str] = ""
    """One honest line about what a result here does and does not say; printed below every result."""
    own_data: ClassVar[str] = "the task's own data"
    """What the task reads without ``--data``, where another version of Python or of a library may have other data."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """The files that ``--data`` may name; with none, the task makes or ships its own data."""
    needs_data: ClassVar[bool] = False
    """Whether there is nothing to train on without ``--data``."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Training options that differ from the general defaults, by their flag's name."""

    def load(self, config: TaskConfig) -> TaskData:
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
        """More of the same data, to predict on or to evaluate. Here: ``x`` of an .npz file.

        ``y`` is encoded as in training where the file holds the targets (`UNSEEN` for a label that is missing or that
        training did not know, NaN for a number that is missing), and empty otherwise.

        Raises:
            UserError: when the file does not fit what the network was trained on.
        """
        x = read_x(path, inputs, length)
        return Split(x.float() if inputs.kind == "vectors" else x, torch.empty(0))

    def read_labelled(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The same with targets, to score a network on.

        Raises:
            UserError: when the file does not fit, or holds no targets.
        """
        split = self.read(path, inputs, length, encoding)
        if not split.y.numel():
            raise UserError(f"{path} lacks the target {encoding.get('target', 'y')}; add it, or use attnlab predict")
        return split

    def predict(
        self, network: Network, path: Path, encoding: dict[str, Any], score: Callable[[Split], Tensor]
    ) -> dict[str, list[Any]]:
        """A network's answers for the examples in a file: columns of one value per example.

        Args:
            network: gives what it was trained to take, and to answer.
            path: the file.
            encoding: that of the problem that the network was trained on.
            score: the network's outputs for a split.

        Raises:
            UserError: when the file does not fit what the network was trained on.
        """
        split = self.read(path, network.inputs, network.length, encoding)
        return self.decode(network.outputs, score(split), split, encoding)

    def decode(self, outputs: Outputs, scores: Tensor, split: Split, encoding: dict[str, Any]) -> dict[str, list[Any]]:
        """The network's scores for a split as columns of one value per example.

        ``prediction``; for classes also ``probability``, and ``proba_<class>`` for each class where there is one slot
        and at most `MOST_PROBABILITIES` classes.
        """
        labels = encoding.get("labels") or list(range(outputs.size))
        if outputs.kind == "values":
            mean, unit = encoding.get("mean", 0.0), encoding.get("unit", 1.0)
            return {"prediction": [_one(row) for row in (scores.double() * unit + mean).tolist()]}
        chances = scores.double().softmax(-1)
        best = chances.max(-1)
        columns: dict[str, list[Any]] = {
            "prediction": [_one([labels[i] for i in row]) for row in best.indices.tolist()],
            "probability": [_one(row) for row in best.values.tolist()],
        }
        if chances.dim() == 3 and outputs.slots == 1 and len(labels) <= MOST_PROBABILITIES:
            for i, label in enumerate(labels):
                columns[f"proba_{label}"] = chances[:, 0, i].tolist()
        return columns


def read_x(path: Path, inputs: Inputs, length: int) -> Tensor:
    """``x`` of an .npz file, checked against what a network takes: whole numbers, or float64 that is not yet scaled.

    Raises:
        UserError: for a file that cannot be read, or an ``x`` of another shape, type or range.
    """
    arrays = Arrays(path)
    if "x" not in arrays:
        raise UserError(f"{path} holds {', '.join([*arrays][:8]) or 'nothing'}; expected an array called x")
    x = arrays["x"]
    tokens = inputs.kind == "tokens"
    wanted = f"(batch, at most {length})" if tokens else f"(batch, at most {length}, {inputs.size})"
    if x.ndim != (2 if tokens else 3) or not 1 <= x.shape[1] <= length or (not tokens and x.shape[2] != inputs.size):
        raise UserError(f"x in {path} has shape {x.shape}; expected {wanted}")
    if x.dtype.kind not in ("iu" if tokens else "biuf"):
        raise UserError(f"x in {path} has dtype {x.dtype}; expected {'whole numbers' if tokens else 'numbers'}")
    if tokens and x.size and not 0 <= x.min() <= x.max() < inputs.size:
        raise UserError(f"x in {path} holds {x.min()} to {x.max()}; expected tokens from 0 to {inputs.size - 1}")
    if not tokens and not np.isfinite(x).all():
        raise UserError(f"x in {path} holds NaN or infinity; replace or drop those rows")
    return torch.from_numpy(x.astype(np.int64 if tokens else np.float64))


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
