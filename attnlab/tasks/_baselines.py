"""Baselines: simpler methods on the same split.

scikit-learn is imported where it is used, because that takes a second.
"""

from __future__ import annotations

import math
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
NEIGHBOURS_NAME = f"{NEIGHBOURS} nearest neighbours"
MAX_DISTANCE_COST = 5e9
"""Multiplications of the nearest neighbours: training rows × test rows × features."""
MAX_ITER = 300
"""Iterations of logistic regression."""
MAX_REGRESSION_COST = 5e10
"""Multiplications of logistic regression: iterations × rows × classes × features."""

Features = Callable[[Rows, Rows], tuple[Any, ...]]
"""Maps the indices of the training and test rows to their features, arrays or sparse matrices."""
Method = tuple[Any, Callable[[Any], float], Callable[[Any], float]]
"""A model, and how many training and test rows it may use, given the features of the training rows."""


def flattened(x: NDArray[Any]) -> Features:
    """The flattened rows of (B, ...) as features."""
    return lambda train, test: (x[train].reshape(len(train), -1), x[test].reshape(len(test), -1))


def classifiers(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, logistic regression and the majority class, with every metric for classes.

    ``y`` is (rows,), classes from 0. A method that fails has no metrics, and its name gives the reason.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    classes = int(y.max()) + 1

    def scores(model: Any, x: Any, tested: Rows) -> dict[str, float]:
        probabilities = np.zeros((len(tested), classes))
        probabilities[:, model.classes_] = model.predict_proba(x)
        return class_metrics(probabilities, y[tested])

    def most_rows(x: Any) -> float:
        return MAX_REGRESSION_COST / (MAX_ITER * classes * _width(x))

    methods: dict[str, Method] = {
        NEIGHBOURS_NAME: (KNeighborsClassifier(min(NEIGHBOURS, len(parts.train))), _all, _near_rows),
        "logistic regression": (LogisticRegression(max_iter=MAX_ITER), most_rows, _all),
    }
    majority = np.eye(classes)[np.full(len(parts.test), np.bincount(y[parts.train]).argmax())]
    return [
        *_computed(methods, features, y, y, parts, scores),
        Baseline("majority class", class_metrics(majority, y[parts.test])),
    ]


def regressors(features: Features, y: NDArray[Any], parts: Parts) -> list[Baseline]:
    """Three nearest neighbours, ridge regression and the mean, with every metric for values.

    The methods are fitted to standardized targets; predictions are converted back to the unit of ``y`` in float64.
    """
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    mean = y[parts.train].mean()
    unit = np.abs(y[parts.train] - mean).max() or 1.0

    def scores(model: Any, x: Any, tested: Rows) -> dict[str, float]:
        return value_metrics(model.predict(x) * unit + mean, y[tested])

    methods: dict[str, Method] = {
        NEIGHBOURS_NAME: (KNeighborsRegressor(min(NEIGHBOURS, len(parts.train))), _all, _near_rows),
        "ridge regression": (Ridge(), _all, _all),
    }
    constant = value_metrics(np.full(len(parts.test), mean), y[parts.test])
    target = (y - mean) / unit
    return [
        *_computed(methods, features, target, np.zeros(len(y), np.int64), parts, scores),
        Baseline("mean", constant),
    ]


def _computed(
    methods: Mapping[str, Method],
    features: Features,
    target: NDArray[Any],
    strata: NDArray[Any],
    parts: Parts,
    scores: Callable[[Any, Any, Rows], dict[str, float]],
) -> list[Baseline]:
    """The results of the methods; samples keep a row of each of the ``strata``."""
    from sklearn.exceptions import ConvergenceWarning

    results = []
    rows = parts.train[sample(strata[parts.train], MAX_TRAIN, 0)]
    x: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # MAX_ITER is enough for a baseline
        for name, (model, most_rows, most_tested) in methods.items():
            try:
                if x is None:
                    x, test_x = features(rows, parts.test)
                few = sample(strata[rows], most_rows(x), 0)
                tested = sample(strata[parts.test], max(1, most_tested(x)), 0)
                values = scores(model.fit(x[few], target[rows[few]]), test_x[tested], parts.test[tested])
            except Exception as error:  # a failed baseline must not lose the trained network
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                results.append(Baseline(f"{name} (failed: {reason})", {}))
                continue
            notes = [f"on {len(few):,} rows"] if len(few) < len(parts.train) else []
            notes += [f"tested on {len(tested):,}"] if len(tested) < len(parts.test) else []
            results.append(Baseline(name + (f" ({', '.join(notes)})" if notes else ""), values))
    return results


def _all(x: Any) -> float:
    return math.inf


def _near_rows(x: Any) -> float:
    return MAX_DISTANCE_COST / (x.shape[0] * _width(x))


def _width(x: Any) -> float:
    """Nonzero features per row; those of a sparse matrix cost ten times as much."""
    return max(1.0, 10 * x.nnz / x.shape[0] if hasattr(x, "nnz") else x.shape[1])
