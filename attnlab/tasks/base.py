"""The interface of a task: data as tensors in memory, a metric, and baselines.

A task is one file in ``attnlab/tasks/``, discovered by its presence, with one subclass of `Task`. Its class attributes
are literals, so that tasks can be listed without importing torch.
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
"""The target of a position without a target."""
UNSEEN = -1
"""The target of a row whose label is not among the classes of the training data."""
MAX_PROBABILITIES = 1_000
"""With more classes, predictions include only the probability of the predicted class."""


class Split(NamedTuple):
    """Examples: ``x`` (B, N) or (B, N, F), targets ``y``, and ``lengths`` (B,) if some examples are padded.

    ``y`` is (B, slots) integers for outputs of kind ``classes``, (B, N) for ``tokens`` with `IGNORE` at positions
    without a target, and (B, slots) values for ``values``.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Split:
        """Apply a function to every tensor."""
        return Split(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]

    def take(self, rows: Tensor | slice) -> Split:
        """Some of the examples."""
        return self.map(lambda part: part[rows])

    def to(self, device: torch.device) -> Split:
        """The same on another device."""
        return self.map(lambda part: part.to(device))

    def double(self) -> Split:
        """The same with floating-point tensors in float64."""
        return self.map(lambda part: part.double() if part.is_floating_point() else part)


class Baseline(NamedTuple):
    """A simpler method on the same test split; ``values`` holds its metrics by name, such as ``accuracy``."""

    name: str
    values: dict[str, float]


class ColumnUse(NamedTuple):
    """How a task uses one column of the user's file: ``use`` (``number``, ``left out`` ...) and the reason."""

    name: str
    use: str
    why: str


@dataclass(frozen=True)
class TaskConfig:
    """The options of a task.

    Args:
        seed: of the split or of the random examples.
        val_fraction: the fraction of the training data used for validation.
        seq_length: tokens per sequence; None for the task's default.
        test_length: tokens per sequence of the test data; None for ``seq_length``.
        pairs: key-value pairs per sequence; None for the task's default.
        vocabulary: the number of different symbols; None for the task's default.
        noise: the fraction of the tokens that are noise; None for the task's default.
        data: the user's own file.
        target: the column to predict.
        target_type: whether the target is a ``class`` or a ``number``; None to decide by its values.
        features: the columns to use; None for all that can be used.
        ignore: columns to leave out.
        missing: the treatment of missing values: ``mean`` fills them, ``error`` refuses them, ``drop`` removes their
            rows.
        split_by: the unit in which a text is split: ``lines``, ``paragraphs`` or ``position``; None to decide by the
            text.
        header: whether the first line of a table names its columns.
    """

    seed: int = 0
    val_fraction: float = 0.1
    seq_length: int | None = None
    test_length: int | None = None
    pairs: int | None = None
    vocabulary: int | None = None
    noise: float | None = None
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
    """The data of a task at one seed and size, ready for training.

    Args:
        train: training data.
        validation: selects the best network.
        test: evaluates it once.
        inputs: the kind and size of ``x``.
        outputs: the kind and size of ``y``.
        length: the longest sequence of all parts.
        metric: selects the best network; a name in `attnlab.tasks.metrics.METRICS`.
        causal: whether the network must be causal.
        pool: how the network pools a sequence for ``classes`` and ``values``.
        unit: the factor from the standardized targets of ``values`` to the user's unit.
        encoding: JSON values; all that is needed to read more data of the same kind and to name the classes.
        summary_lines: printed before training starts: how the data were interpreted.
        columns: likewise, one entry per column of the user's table.
        baselines: computes the baselines.
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
        """Check the shape of the targets: a wrong shape would be broadcast to a wrong metric."""
        for part in (self.train, self.validation, self.test):
            shape = (len(part.x), part.x.shape[1] if self.outputs.kind == "tokens" else self.outputs.slots)
            if part.y.shape != shape:
                raise ValueError(f"y has shape {tuple(part.y.shape)}; outputs of kind {self.outputs.kind} need {shape}")


class Task:
    """Data to train on."""

    summary: ClassVar[str]
    """One line: the question."""
    caveat: ClassVar[str] = ""
    """One line about what a result does and does not show; printed below every result."""
    own_data: ClassVar[str] = "the task's own data"
    """The data without ``--data``, which may differ in another version of Python or of a library."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """The files that ``--data`` accepts; without any, the task has its own data."""
    needs_data: ClassVar[bool] = False
    """Whether ``--data`` is required."""
    fresh_data: ClassVar[bool] = False
    """Whether every seed draws new examples; otherwise a seed draws another split of the same examples."""
    threshold: ClassVar[float | None] = None
    """The accuracy that a right implementation reaches with the task's defaults."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Settings that differ from the general defaults, by flag name."""

    def load(self, config: TaskConfig) -> TaskData:
        """The data, split into training, validation and test data.

        Raises:
            UserError: for a file or an option that is invalid.
        """
        raise NotImplementedError

    def columns(self, path: Path) -> dict[str, str]:
        """The columns of a file that can be the ``--target``, each with its type; none if files have no columns.

        Raises:
            UserError: for a file that cannot be read.
        """
        return {}

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """A short name for each token of a sequence: by default its integer, or its position if it is a vector.

        Args:
            x: one sequence without padding, (N,), (N, F) or (N, 2), depending on ``inputs``.
            inputs: of the network.
            encoding: of the data that the network was trained on.
        """
        return list(map(str, x.tolist() if inputs.kind == "tokens" else range(1, len(x) + 1)))

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """More data of the same kind, for prediction or evaluation. By default: ``x`` of an .npz file.

        ``y`` is encoded as in training if the file holds the targets (`UNSEEN` for a label that is missing or unknown,
        NaN for a number that is missing), and empty otherwise.

        Raises:
            UserError: for a file that does not match the network.
        """
        x = read_x(path, inputs, length)
        return Split(x.float() if inputs.kind == "vectors" else x, torch.empty(0))

    def read_labelled(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The same with targets, for evaluation.

        Raises:
            UserError: for a file that does not match the network, or that has no targets.
        """
        split = self.read(path, inputs, length, encoding)
        if not split.y.numel():
            raise UserError(f"{path} lacks the target {encoding.get('target', 'y')}; add it, or use attnlab predict")
        return split

    def predict(
        self, network: Network, path: Path, encoding: dict[str, Any], score: Callable[[Split], Tensor]
    ) -> dict[str, list[Any]]:
        """Predictions for the examples in a file: columns with one value per example.

        Args:
            network: defines the inputs and outputs.
            path: the file.
            encoding: of the data that the network was trained on.
            score: computes the network's outputs for a split.

        Raises:
            UserError: for a file that does not match the network.
        """
        split = self.read(path, network.inputs, network.length, encoding)
        return self.decode(network.outputs, score(split), split, encoding)

    def decode(self, outputs: Outputs, scores: Tensor, split: Split, encoding: dict[str, Any]) -> dict[str, list[Any]]:
        """The network's scores for a split as columns with one value per example.

        ``prediction``; for classes also ``probability``, and ``proba_<class>`` for each class if there is one slot
        and at most `MAX_PROBABILITIES` classes.
        """
        labels = encoding.get("labels") or list(range(outputs.size))
        if outputs.kind == "values":
            mean, unit = encoding.get("mean", 0.0), encoding.get("unit", 1.0)
            return {"prediction": [_unwrap(row) for row in (scores.double() * unit + mean).tolist()]}
        probabilities = scores.double().softmax(-1)
        best = probabilities.max(-1)
        columns: dict[str, list[Any]] = {
            "prediction": [_unwrap([labels[i] for i in row]) for row in best.indices.tolist()],
            "probability": [_unwrap(row) for row in best.values.tolist()],
        }
        if probabilities.dim() == 3 and outputs.slots == 1 and len(labels) <= MAX_PROBABILITIES:
            for i, label in enumerate(labels):
                columns[f"proba_{label}"] = probabilities[:, 0, i].tolist()
        return columns


def read_x(path: Path, inputs: Inputs, length: int) -> Tensor:
    """``x`` of an .npz file, checked against the network's inputs: integers, or float64 that is not yet standardized.

    Raises:
        UserError: for a file that cannot be read, or an ``x`` of another shape, dtype or range.
    """
    arrays = Arrays(path)
    if "x" not in arrays:
        raise UserError(f"{path} holds {', '.join([*arrays][:8]) or 'nothing'}; expected an array called x")
    x = arrays["x"]
    tokens = inputs.kind == "tokens"
    expected = f"(batch, at most {length})" if tokens else f"(batch, at most {length}, {inputs.size})"
    if x.ndim != (2 if tokens else 3) or not 1 <= x.shape[1] <= length or (not tokens and x.shape[2] != inputs.size):
        raise UserError(f"x in {path} has shape {x.shape}; expected {expected}")
    if x.dtype.kind not in ("iu" if tokens else "biuf"):
        raise UserError(f"x in {path} has dtype {x.dtype}; expected {'integers' if tokens else 'numbers'}")
    if tokens and x.size and not 0 <= x.min() <= x.max() < inputs.size:
        raise UserError(f"x in {path} holds {x.min()} to {x.max()}; expected tokens from 0 to {inputs.size - 1}")
    if not tokens and not np.isfinite(x).all():
        raise UserError(f"x in {path} holds NaN or infinity; replace or drop those rows")
    return torch.from_numpy(x.astype(np.int64 if tokens else np.float64))


def _unwrap(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
