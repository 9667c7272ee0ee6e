"""Baselines match scikit-learn, and a failing baseline does not fail a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_data import csv, table
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from attnlab.tasks import _baselines
from attnlab.tasks._baselines import classifiers, flattened, regressors
from attnlab.tasks._split import Parts

GENERATOR = np.random.default_rng(3)
X = GENERATOR.normal(size=(307, 3))
PARTS = Parts(np.arange(0, 201), np.arange(201, 211), np.arange(211, 307))


def test_classes_agree_with_scikit_learn() -> None:
    y = (X.sum(1) > 0).astype(int) + (X[:, 0] > 1)
    train, test = PARTS.train, PARTS.test
    found = {b.name: b.values["accuracy"] for b in classifiers(flattened(X), y, PARTS)}
    models = {"3 nearest neighbours": KNeighborsClassifier(3), "logistic regression": LogisticRegression(max_iter=300)}
    expected = {name: model.fit(X[train], y[train]).score(X[test], y[test]) for name, model in models.items()}
    majority = (y[test] == np.bincount(y[train]).argmax()).mean()
    assert found == pytest.approx({**expected, "majority class": majority})


def test_regression_metrics_agree_with_scikit_learn() -> None:
    y = X @ [1, 2, 3] + GENERATOR.normal(size=307) + 10**7
    train, test = PARTS.train, PARTS.test
    found = {b.name: b.values["rmse"] for b in regressors(flattened(X), y, PARTS)}
    ridge = Ridge().fit(X[train], y[train]).predict(X[test])
    assert found["ridge regression"] == pytest.approx(np.sqrt(np.mean((ridge - y[test]) ** 2)), rel=1e-6)
    assert found["mean"] == pytest.approx(np.sqrt(np.mean((y[train].mean() - y[test]) ** 2)))
    assert found["3 nearest neighbours"] < found["mean"]


def test_rare_class_is_in_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows with three positives, and a smaller sample."""
    monkeypatch.setattr(_baselines, "MAX_TRAIN", 101)
    rare = [int(i in (7, 1_003, 1_709)) for i in range(2_003)]
    task_data = table(csv(tmp_path, x=GENERATOR.normal(size=2_003), y=rare), "y")
    found = {b.name: b.values for b in task_data.baselines()}
    assert len(found) == 3
    assert "logistic regression (on 101 rows)" in found
    assert found["majority class"]["accuracy"] == pytest.approx(1 - 1 / len(task_data.test.y))
    assert all(np.isfinite(list(values.values())).all() for values in found.values())


@pytest.mark.parametrize("which", [classifiers, regressors])
def test_failing_baseline_does_not_fail_the_run(which: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    y = (X.sum(1) > 0).astype(int)
    y[-1] = 2  # in the test data alone
    found = which(flattened(X), y, PARTS)
    assert [len(b.values) for b in found] == [len(found[-1].values)] * 3
    no_features = which(fail, y, PARTS)
    monkeypatch.setattr(KNeighborsClassifier, "fit", fail)
    monkeypatch.setattr(Ridge, "fit", fail)
    for results, failed in (
        (no_features, {0, 1}),
        (which(flattened(X), y, PARTS), {0} if which is classifiers else {1}),
    ):
        for i, (before, after) in enumerate(zip(found, results, strict=True)):
            assert after == ((f"{before.name} (failed: out of memory)", {}) if i in failed else before)


def test_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_baselines, "MAX_TRAIN", 97)
    monkeypatch.setattr(_baselines, "MAX_DISTANCE_COST", 97 * 3 * 31)
    monkeypatch.setattr(_baselines, "MAX_REGRESSION_COST", 53 * 3 * 300 * 2)
    y = (X.sum(1) > 0).astype(int)
    assert [b.name for b in classifiers(flattened(X), y, PARTS)] == [
        "3 nearest neighbours (on 97 rows, tested on 31)",
        "logistic regression (on 53 rows)",
        "majority class",
    ]


def test_baselines_use_categories_and_words(tmp_path: Path) -> None:
    count = 307
    colours = ["red", "green", "blue"]
    path = csv(
        tmp_path,
        noise=GENERATOR.normal(size=count),
        colour=[colours[i % 3] for i in range(count)],
        text=[f"number {i} {'good' if i % 2 else 'bad'} film" for i in range(count)],
        no_words=[f"{i} " for i in range(count)],
        y=[f"{colours[i % 3]}{i % 2}" for i in range(count)],
    )
    found = {b.name: b.values["accuracy"] for b in table(path, "y", ignore=("no_words",)).baselines()}
    assert found["logistic regression"] > 0.95
    assert found["majority class"] < 0.3
    assert all(b.values for b in table(path, "y", features=("no_words", "noise")).baselines())
