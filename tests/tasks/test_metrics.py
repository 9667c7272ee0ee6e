"""Every metric against scikit-learn, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from attnlab.tasks.metrics import CLASS_METRICS, METRICS, VALUE_METRICS, class_metrics, value_metrics


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(11, 53))
@settings(max_examples=20)
def test_classes_as_scikit_learn_computes_them(seed: int, classes: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.ones(classes), rows)
    y = draw.permutation(np.concatenate([np.arange(classes), draw.integers(0, classes, rows - classes)]))
    found, predicted = class_metrics(p, y), p.argmax(1)
    assert set(found) == set(CLASS_METRICS)
    labels = np.unique(y)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(np.mean([(predicted[y == c] == c).mean() for c in labels]))
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        expected = score(y, predicted, labels=labels, average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected, abs=1e-12)
    scores = p[:, 1] if classes == 2 else p
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, scores, multi_class="ovr"), abs=1e-12)


def test_undefined_metrics_are_nan() -> None:
    found = class_metrics(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    assert math.isnan(found["roc_auc"])
    assert found["accuracy"] == 0.5
    assert math.isnan(value_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["r2"])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e9, -1.7e9]))
@settings(max_examples=20)
def test_values_as_scikit_learn_computes_them(seed: int, offset: float) -> None:
    draw = np.random.default_rng(seed)
    y, predicted = offset + draw.normal(size=37), offset + draw.normal(size=37)
    found = value_metrics(predicted, y)
    assert set(found) == set(VALUE_METRICS)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, predicted), rel=1e-9)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, predicted), rel=1e-9)
    assert found["r2"] == pytest.approx(sk.r2_score(y, predicted), rel=1e-6)


def test_metrics_have_labels() -> None:
    assert set(METRICS) == {*CLASS_METRICS, *VALUE_METRICS, "bits_per_byte"}
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"rmse", "mae", "bits_per_byte"}
