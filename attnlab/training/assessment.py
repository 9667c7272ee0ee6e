"""The test metrics of a network's scores: every metric, and for classes the confusion matrix."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attnlab.network import Network, Outputs
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective, evaluate, predict

MISLEADING_SHARE = 0.8
"""Accuracy is misleading if one class is at least this common."""
MAX_CLASSES = 100
"""Confusion matrices of more classes are not stored."""
MAX_SCORES = 2**28
"""More scores than this are not kept in memory."""


def assess_network(
    network: Network,
    split: Split,
    objective: Objective,
    encoding: dict[str, Any],
    *,
    batch_size: int = 128,
    autocast: AbstractContextManager[Any] | None = None,
) -> dict[str, Any]:
    """``test_loss``, and the entries of `assess` as far as they are defined, of a network on a split."""
    if not has_details(network.outputs, len(split.x)):
        loss, metric = evaluate(network, split, objective, batch_size=batch_size, autocast=autocast)
        return {"test_loss": loss, "metrics": as_json({objective.metric: metric}), "notes": []}
    scores = predict(network, split, batch_size=batch_size, autocast=autocast)
    loss = float(objective.each(scores, split.y)[0].double().mean())
    return {"test_loss": loss, **assess(scores, split.y, objective, class_names(network.outputs, encoding))}


def assess(scores: Tensor, y: Tensor, objective: Objective, labels: list[Any] | None) -> dict[str, Any]:
    """Metrics of (B, 1, C) scores of ``labels``, or of (B, 1) standardized values, with (B, 1) targets, on the CPU.

    Returns:
        ``metrics`` by name (None if undefined); for classes ``labels``, ``per_class`` (precision, recall, F1, count)
        and ``confusion`` (rows: true class, columns: predicted class); ``notes``, one line each.
    """
    result: dict[str, Any] = {"metrics": as_json(objective.metrics(scores, y)), "notes": []}
    if labels is None:
        return result
    target = y[:, 0].numpy()
    result["notes"] += imbalance(target, labels)
    if len(labels) <= MAX_CLASSES:
        predicted = scores[:, 0].argmax(-1).numpy()
        result |= {"labels": labels, **per_class(predicted, target, labels)}
    return result


def class_names(outputs: Outputs, encoding: dict[str, Any]) -> list[Any] | None:
    """The names of the classes, by index; None for values."""
    if outputs.kind == "values":
        return None
    return encoding.get("labels") or list(range(outputs.size))


def as_json(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON values: None for one that is undefined."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def per_class(predicted: NDArray[Any], y: NDArray[Any], labels: list[Any]) -> dict[str, Any]:
    """The entries ``per_class`` and ``confusion`` of `assess`; precision, recall and F1 are 0 where undefined."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = range(len(labels))
    columns = precision_recall_fscore_support(y, predicted, labels=classes, zero_division=0)
    each = [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
        for label, p, r, f, n in zip(labels, *columns, strict=True)
    ]
    return {"per_class": each, "confusion": confusion_matrix(y, predicted, labels=classes).tolist()}


def imbalance(y: NDArray[Any], labels: list[Any]) -> list[str]:
    """A warning if accuracy is misleading because one class is very common."""
    counts = np.bincount(y, minlength=len(labels))
    most = int(counts.argmax())
    share = counts[most] / len(y)
    if share < MISLEADING_SHARE:
        return []
    return [
        f"{counts[most]:,} of {len(y):,} test examples are of class {labels[most]}: always predicting it gives an "
        f"accuracy of {share:.3f}, so compare balanced accuracy, F1 and the recall of each class; --metric f1 selects "
        "by F1, --class_weight balanced gives rare classes more weight"
    ]


def has_details(outputs: Outputs, examples: int) -> bool:
    """Whether all metrics are defined (one class per example, or values) and the scores fit into memory."""
    return outputs.kind != "tokens" and outputs.slots == 1 and examples * outputs.size <= MAX_SCORES
