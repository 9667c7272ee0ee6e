"""What a network's scores on a split amount to: every metric, and for classes the confusion matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attnlab.network import Outputs
from attnlab.training.objective import Objective

MISLEADING_SHARE = 0.8
"""Where one class is this common, always answering with it already gives a high accuracy."""
MOST_CLASSES = 100
"""Confusion matrices of more classes are not kept."""
MOST_SCORES = 2**28
"""More scores than these are not kept in memory."""


def assess(scores: Tensor, y: Tensor, objective: Objective, labels: list[Any] | None) -> dict[str, Any]:
    """Metrics of a network's scores.

    Args:
        scores: (B, 1, C) of classes, or (B, 1) of standardized values, on the CPU.
        y: (B, 1) the targets, likewise.
        objective: gives the metrics.
        labels: the names of the classes; None for values.

    Returns:
        ``metrics`` by name (None where one is not defined); for classes ``labels``, ``per_class`` (precision, recall,
        F1, count) and ``confusion`` (rows: true class, columns: predicted class); ``notes``, a line each.
    """
    found: dict[str, Any] = {"metrics": as_json(objective.metrics(scores, y)), "notes": []}
    if labels is None:
        return found
    target = y[:, 0].numpy()
    found["notes"] += imbalance(target, labels)
    if len(labels) <= MOST_CLASSES:
        matrix = confusion(scores[:, 0].argmax(-1).numpy(), target, len(labels))
        found |= {"labels": labels, "per_class": per_class(matrix, labels), "confusion": matrix.tolist()}
    return found


def names_of(outputs: Outputs, encoding: dict[str, Any]) -> list[Any] | None:
    """The names of the classes, by number; None for values."""
    if outputs.kind == "values":
        return None
    return encoding.get("labels") or list(range(outputs.size))


def as_json(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON can hold them: None for one that is not defined."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def confusion(predicted: NDArray[Any], y: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many examples of each true class (rows) were predicted as each class (columns)."""
    return np.bincount(y * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: NDArray[np.int64], labels: list[Any]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and the number of examples of each class, out of a confusion matrix; 0 where undefined."""
    hits, predicted, true = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(predicted + true, 1)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
        for label, p, r, f, n in zip(labels, precision, recall, f1, true, strict=True)
    ]


def imbalance(y: NDArray[Any], labels: list[Any]) -> list[str]:
    """A warning where accuracy misleads, because one class is very common."""
    counts = np.bincount(y, minlength=len(labels))
    most = int(counts.argmax())
    share = counts[most] / len(y)
    if share < MISLEADING_SHARE:
        return []
    return [
        f"{counts[most]:,} of {len(y):,} test examples are of class {labels[most]}: always predicting it gives an "
        f"accuracy of {share:.3f}, so look at balanced accuracy, F1 and the recall of each class; --metric f1 chooses "
        "by F1, --class_weight balanced weighs rare classes more"
    ]


def has_details(outputs: Outputs, examples: int) -> bool:
    """Whether more than the main metric can be reported: one class per example, or values, and not too many scores."""
    return outputs.kind != "tokens" and outputs.slots == 1 and examples * outputs.size <= MOST_SCORES
