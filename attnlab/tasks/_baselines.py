"""Simpler methods on the same split: what a network has to beat.

scikit-learn is imported where it is used; it takes a second.
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

MOST = 10_000
"""Training rows of the baselines, so that they stay quick."""
NEIGHBOURS = 3
DISTANCES = 5e9
"""Products that the nearest neighbours may cost: rows to learn from, times rows to test, times features."""
STEPS = 300
"""Iterations of logistic regression at most."""
PRODUCTS = 5e10
"""Products that logistic regression may cost: iterations, times rows, times classes, times features."""

Features = Callable[[Rows, Rows], tuple[Any, Any]]
"""From the numbers of the training and the test rows to the features of both, arrays or sparse matrices."""


Method = Callable[[Any, Any], tuple[str, dict[str, float]]]
"""From the features of the training and the test rows to a note for the name, and the metrics."""


def flattened(x: NDArray[Any]) -> Features:
    """The numbers of every row of (B, ...)."""
    return lambda train, test: (x[train].reshape(len(train), -1), x[test].reshape(len(test), -1))


def classifiers(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, logistic regression and the majority class, in every metric for classes.

    A method that fails has no metrics, and its name says why.

    Args:
        features: the features of the training and the test rows.
        y: (rows,) classes from 0 on.
        parts: the split.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    classes = int(y.max()) + 1
    rows = parts.train[sample(y[parts.train], MOST, 0)]
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
        few = sample(train_y, int(PRODUCTS / (STEPS * classes * _width(x))), 0)
        model = LogisticRegression(max_iter=STEPS).fit(x[few], train_y[few])
        return _note(few, parts), scores(model, test_x, test_y)

    def majority() -> dict[str, float]:
        most = np.bincount(y[parts.train]).argmax()
        return class_metrics(np.eye(classes)[np.full(len(test_y), most)], test_y)

    methods = {f"{NEIGHBOURS} nearest neighbours": neighbours, "logistic regression": linear}
    return _computed(methods, "majority class", majority, lambda: features(rows, parts.test))


def regressors(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, ridge regression and the mean, in every metric for values; arguments as above.

    They learn standardized targets; their predictions are put back into the unit of ``y`` in float64.
    """
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    test_y = y[parts.test]
    mean = y[parts.train].mean()
    unit = np.abs(y[parts.train] - mean).max() or 1.0
    rows = parts.train[sample(np.zeros(len(parts.train), np.int64), MOST, 0)]
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
    """The methods, and the trivial one, which needs no features."""
    from sklearn.exceptions import ConvergenceWarning

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many iterations are enough for a baseline
        both: tuple[Any, Any] | None = None
        for name, method in methods.items():
            try:
                both = features() if both is None else both
                note, values = method(*both)
            except Exception as error:  # the network has been trained; no baseline is worth losing it
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                found.append(Baseline(f"{name} (failed: {reason})", {}))
            else:
                found.append(Baseline(name + note, values))
    return [*found, Baseline(trivial, constant())]


def _few(x: Any, test_x: Any, classes: NDArray[Any]) -> Rows:
    """The test rows whose neighbours can be found in a few seconds."""
    return sample(classes, max(1, int(DISTANCES / (x.shape[0] * _width(x)))), 0)


def _width(x: Any) -> float:
    """Features that are not zero per row; those of a sparse matrix cost ten times as much."""
    return max(1.0, 10 * x.nnz / x.shape[0] if hasattr(x, "nnz") else x.shape[1])


def _note(rows: Rows, parts: Parts, tested: Rows | None = None) -> str:
    said = [f"on {len(rows):,} rows"] if len(rows) < len(parts.train) else []
    if tested is not None and len(tested) < len(parts.test):
        said.append(f"tested on {len(tested):,}")
    return f" ({', '.join(said)})" if said else ""
