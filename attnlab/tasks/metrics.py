"""The reported metrics, computed in float64. Averages over classes are macro averages."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Metric(NamedTuple):
    """The name of a metric in full and in table headers, and whether higher is better."""

    label: str
    short: str
    higher_is_better: bool


METRICS = {
    "accuracy": Metric("accuracy", "accuracy", True),
    "balanced_accuracy": Metric("balanced accuracy", "balanced", True),
    "precision": Metric("precision (macro)", "precision", True),
    "recall": Metric("recall (macro)", "recall", True),
    "f1": Metric("F1 (macro)", "F1", True),
    "roc_auc": Metric("ROC AUC", "ROC AUC", True),
    "rmse": Metric("root mean squared error", "RMSE", False),
    "mae": Metric("mean absolute error", "MAE", False),
    "r2": Metric("R²", "R²", True),
    "bits_per_byte": Metric("bits per byte", "bits/byte", False),
}

CLASS_METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc")
VALUE_METRICS = ("rmse", "mae", "r2")


def class_metrics(probabilities: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """`CLASS_METRICS` of predicted probabilities.

    Args:
        probabilities: (B, C), each row sums to 1.
        y: (B,) classes from 0 to C - 1.

    Returns:
        Macro averages over the classes that occur in ``y``. ``roc_auc`` is the one-vs-rest mean over these classes, and
        NaN if ``y`` has a single class.
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    present = np.unique(y)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(y, predicted, labels=present, zero_division=0)
    areas = [roc_auc_score(y == c, probabilities[:, c]) for c in present] if len(present) > 1 else []
    return {
        "accuracy": float((predicted == y).mean()),
        "balanced_accuracy": float(recall.mean()),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(f1.mean()),
        "roc_auc": float(np.mean(areas)) if len(areas) > 1 else math.nan,
    }


def value_metrics(predicted: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """`VALUE_METRICS` of predicted values, both (B,) in float64; R² is NaN if all of ``y`` are equal."""
    errors = predicted.astype(np.float64) - y
    spread = float(np.square(y - y.mean()).sum())
    squares = float(np.square(errors).sum())
    return {
        "rmse": math.sqrt(squares / len(y)),
        "mae": float(np.abs(errors).mean()),
        "r2": 1 - squares / spread if spread > 0 else math.nan,
    }
