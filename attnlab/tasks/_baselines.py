"""Baselines: simpler methods on the same split.

scikit-learn is imported where it is used, because that takes a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.tasks._split import Parts, Rows, sample
from attnlab.tasks.base import Baseline
from attnlab.tasks.metrics import class_metrics, value_metrics

MAX_TRAIN = 10_000
"""Training rows of the baselines, to limit their time."""
NEIGHBOURS = 3
MAX_DISTANCE_COST = 5e9
"""Multiplications of the nearest neighbours: training rows × test rows × features."""
MAX_ITER = 300
"""Iterations of logistic regression."""
MAX_REGRESSION_COST = 5e10
"""Multiplications of logistic regression: iterations × rows × classes × features."""

Features = Callable[[Rows, Rows], tuple[Any, Any]]
"""Maps the indices of the training and test rows to their features, arrays or sparse matrices."""
Method = Callable[[Any, Any], tuple[str, dict[str, float]]]
"""Maps the features of the training and test rows to a suffix for the name, and the metrics."""


def flattened(x: NDArray[Any]) -> Features:
    """The flattened rows of (B, ...) as features."""
    return lambda train, test: (x[train].reshape(len(train), -1), x[test].reshape(len(test), -1))


def classifiers(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, logistic regression and the majority class, with every metric for classes.

    A method that fails has no metrics, and its name gives the reason.

    Args:
        features: the features of the training and the test rows.
        y: (rows,) classes, counted from 0.
        parts: the split.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    classes = int(y.max()) + 1
    rows = parts.train[sample(y[parts.train], MAX_TRAIN, 0)]
    train_y, test_y = y[rows], y[parts.test]

    def scores(model: Any, test_x: Any, tested: NDArray[Any]) -> dict[str, float]:
        probabilities = np.zeros((len(tested), classes))
        probabilities[:, model.classes_] = model.predict_proba(test_x)
        return class_metrics(probabilities, tested)

    def neighbours(x: Any, test_x: Any) -> tuple[str, dict[str, float]]:
        tested = _few(x, test_x, test_y)
        model = KNeighborsClassifier(min(NEIGHBOURS, len(rows))).fit(x, train_y)
        return _note(rows, parts, tested), scores(model, test_x[tested], test_y[tested])

    def linear(x: Any, test_x: Any) -> tuple[str, dict[str, float]]:
        few = sample(train_y, int(MAX_REGRESSION_COST / (MAX_ITER * classes * _width(x))), 0)
        model = LogisticRegression(max_iter=MAX_ITER).fit(x[few], train_y[few])
        return _note(few, parts), scores(model, test_x, test_y)

    def majority() -> dict[str, float]:
        most = np.bincount(y[parts.train]).argmax()
        return class_metrics(np.eye(classes)[np.full(len(test_y), most)], test_y)

    methods = {f"{NEIGHBOURS} nearest neighbours": neighbours, "logistic regression": linear}
    return _computed(methods, "majority class", majority, lambda: features(rows, parts.test))


def regressors(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, ridge regression and the mean, with every metric for values; arguments as above.

    The methods are fitted to standardized targets; predictions are converted back to the unit of ``y`` in float64.
    """
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    test_y = y[parts.test]
    mean = y[parts.train].mean()
    unit = np.abs(y[parts.train] - mean).max() or 1.0
    rows = parts.train[sample(np.zeros(len(parts.train), np.int64), MAX_TRAIN, 0)]
    train_y = (y[rows] - mean) / unit

    def neighbours(x: Any, test_x: Any) -> tuple[str, dict[str, float]]:
        tested = _few(x, test_x, np.zeros(len(test_y), np.int64))
        model = KNeighborsRegressor(min(NEIGHBOURS, len(rows))).fit(x, train_y)
        return _note(rows, parts, tested), value_metrics(model.predict(test_x[tested]) * unit + mean, test_y[tested])

    def linear(x: Any, test_x: Any) -> tuple[str, dict[str, float]]:
        model = Ridge().fit(x, train_y)
        return _note(rows, parts), value_metrics(model.predict(test_x) * unit + mean, test_y)

    def constant() -> dict[str, float]:
        return value_metrics(np.full(len(test_y), mean), test_y)

    methods = {f"{NEIGHBOURS} nearest neighbours": neighbours, "ridge regression": linear}
    return _computed(methods, "mean", constant, lambda: features(rows, parts.test))


def _computed(
    methods: Mapping[str, Method],
    trivial: str,
    constant: Callable[[], dict[str, float]],
    features: Callable[[], tuple[Any, Any]],
) -> list[Baseline]:
    """The results of the methods, and of the trivial baseline, which needs no features."""
    from sklearn.exceptions import ConvergenceWarning

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # MAX_ITER is enough for a baseline
        both: tuple[Any, Any] | None = None
        for name, method in methods.items():
            try:
                both = features() if both is None else both
                note, values = method(*both)
            except Exception as error:  # a failed baseline must not lose the trained network
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                results.append(Baseline(f"{name} (failed: {reason})", {}))
            else:
                results.append(Baseline(name + note, values))
    return [*results, Baseline(trivial, constant())]


def _few(x: Any, test_x: Any, classes: NDArray[Any]) -> Rows:
    """As many test rows as fit into the cost limit."""
    return sample(classes, max(1, int(MAX_DISTANCE_COST / (x.shape[0] * _width(x)))), 0)


def _width(x: Any) -> float:
    """Nonzero features per row; those of a sparse matrix cost ten times as much."""
    return max(1.0, 10 * x.nnz / x.shape[0] if hasattr(x, "nnz") else x.shape[1])


def _note(rows: Rows, parts: Parts, tested: Rows | None = None) -> str:
    parts_used = [f"on {len(rows):,} rows"] if len(rows) < len(parts.train) else []
    if tested is not None and len(tested) < len(parts.test):
        parts_used.append(f"tested on {len(tested):,}")
    return f" ({', '.join(parts_used)})" if parts_used else ""
