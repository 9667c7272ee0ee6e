"""Other ways to do the same: what a network must beat before anyone is impressed.

scikit-learn is imported where it is used; it takes a second.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.metrics import class_metrics, value_metrics
from attnlab.task import Baseline

MOST = 10_000
"""The baselines learn from so many rows at most, so that they stay quick."""

NEIGHBOURS = 3


def classifiers(train_x: Any, train_y: NDArray[Any], test_x: Any, test_y: NDArray[Any]) -> list[Baseline]:
    """Three nearest neighbours, logistic regression and the majority class, in every metric for classes.

    Args:
        train_x: (rows, features), an array or a sparse matrix.
        train_y: (rows,) classes from 0 on.
        test_x: (rows, features) like ``train_x``.
        test_y: (rows,) classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    majority = np.eye(train_y.max() + 1)[np.full(len(test_y), np.bincount(train_y).argmax())]
    train_x, train_y, note = _sample(train_x, train_y)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(train_y))).fit(train_x, train_y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are enough for a baseline
        linear = LogisticRegression(max_iter=300).fit(train_x, train_y)
    return [
        Baseline(f"{NEIGHBOURS} nearest neighbours{note}", class_metrics(near.predict_proba(test_x), test_y)),
        Baseline(f"logistic regression{note}", class_metrics(linear.predict_proba(test_x), test_y)),
        Baseline("majority class", class_metrics(majority, test_y)),
    ]


def regressors(train_x: Any, train_y: NDArray[Any], test_x: Any, test_y: NDArray[Any]) -> list[Baseline]:
    """Three nearest neighbours, ridge regression and the mean, in every metric for values; arguments as above."""
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    mean = np.full(len(test_y), train_y.mean())
    train_x, train_y, note = _sample(train_x, train_y)
    near = KNeighborsRegressor(min(NEIGHBOURS, len(train_y))).fit(train_x, train_y)
    linear = Ridge().fit(train_x, train_y)
    return [
        Baseline(f"{NEIGHBOURS} nearest neighbours{note}", value_metrics(near.predict(test_x), test_y)),
        Baseline(f"ridge regression{note}", value_metrics(linear.predict(test_x), test_y)),
        Baseline("mean", value_metrics(mean, test_y)),
    ]


def _sample(x: Any, y: NDArray[Any]) -> tuple[Any, NDArray[Any], str]:
    """The first `MOST` rows of a fixed shuffle, and a note to say so."""
    if len(y) <= MOST:
        return x, y, ""
    rows = np.random.default_rng(0).permutation(len(y))[:MOST]
    return x[rows], y[rows], f" (on {MOST:,} rows)"
