"""Every value of a result is recomputed with scikit-learn in float64 from the saved network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import small
import torch
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

import attnlab
from attnlab.training import train
from attnlab.training.assessment import imbalance, per_class
from attnlab.training.experiment import Experiment, prepare
from attnlab.training.inference import evaluate_file, predict_file
from attnlab.training.objective import Objective, metrics_of, with_metric
from attnlab.training.report import metric_names, number
from attnlab.training.runs import Run
from attnlab.training.settings import defaults

ROWS, N, D = 173, 5, 3


class Finished(NamedTuple):
    """A run on arrays, read-only; its data file was moved to ``data``, so that no evaluation reads the original."""

    experiment: Experiment
    run: Run
    result: dict[str, Any]
    data: Path


def finished(folder: Path, y: Callable[[Any], Any], metric: str) -> Finished:
    x = np.random.default_rng(0).normal(size=(ROWS, N, D)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=y(x))
    values = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 40, "batch_size": 16, "metric": metric}
    settings = defaults("multihead", "arrays").updated({**values, "data": str(folder / "data.npz")}, "the test")
    experiment = prepare(settings)
    run = train.start(experiment, folder / "run")
    train.train(experiment, run)
    data = (folder / "data.npz").rename(folder / "moved.npz")
    return Finished(experiment, run, json.loads((run.path / "result.json").read_text()), data)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("classes")
    return finished(folder, lambda x: np.array(["ant", "bee", "cow"])[x[:, 0].argmax(1)], "f1")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("values"), lambda x: 1e4 + 250 * x[:, 0, 0], "mae")


def test_classes(classes: Finished) -> None:
    experiment, run, result, _ = classes
    test = experiment.task_data.test
    with torch.no_grad():
        scores = attnlab.load(run.path)(test.x)[:, 0].double()
    p, y = scores.softmax(-1).numpy(), test.y[:, 0].numpy()
    predicted = p.argmax(1)
    assert result["labels"] == ["ant", "bee", "cow"]
    precision, recall, f1, count = sk.precision_recall_fscore_support(y, predicted, zero_division=0)
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "roc_auc": sk.roc_auc_score(y, p, multi_class="ovr"),
    }
    assert result["metrics"] == pytest.approx(expected, abs=1e-6)
    assert result["test"] == result["metrics"]["f1"]
    assert result["test_loss"] == pytest.approx(sk.log_loss(y, p), abs=1e-5)
    assert result["confusion"] == sk.confusion_matrix(y, predicted).tolist()
    rows = [list(each.values()) for each in result["per_class"]]
    assert [row[0] for row in rows] == result["labels"]
    assert np.array([row[1:] for row in rows]) == pytest.approx(np.stack([precision, recall, f1, count], 1))
    assert list(result["per_class"][0]) == ["label", "precision", "recall", "f1", "count"]
    report = (run.path / "report.md").read_text()
    for name in metric_names(result):
        assert number(name, result["metrics"][name]) in report
    assert (run.path / "confusion.png").stat().st_size > 1_000
    best = max(line["validation_f1"] for line in run.metrics())
    assert result["validation"] == best
    validation = experiment.task_data.validation
    with torch.no_grad():
        chosen = attnlab.load(run.path)(validation.x)[:, 0].argmax(-1).numpy()
    assert best == pytest.approx(sk.f1_score(validation.y[:, 0].numpy(), chosen, average="macro", zero_division=0))


def value_metrics(true: Any, predicted: Any) -> dict[str, float]:
    return {
        "rmse": sk.root_mean_squared_error(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
        "r2": sk.r2_score(true, predicted),
    }


def test_values(values: Finished) -> None:
    experiment, run, result, data = values
    test, encoding = experiment.task_data.test, experiment.task_data.encoding
    with torch.no_grad():
        scores = attnlab.load(run.path)(test.x)
    predicted, y = (part[:, 0].double().numpy() * encoding["unit"] + encoding["mean"] for part in (scores, test.y))
    assert result["metrics"] == pytest.approx(value_metrics(y, predicted), rel=1e-5)
    assert result["test"] == result["metrics"]["mae"]
    assert "confusion" not in result
    again, answers = evaluate_file(run.path, data), predict_file(run.path, data)
    assert again["test_examples"] == ROWS
    assert again["metrics"] == pytest.approx(value_metrics(np.load(data)["y"], answers.columns["prediction"]), rel=1e-5)
    assert answers.metrics == pytest.approx(again["metrics"], rel=1e-6)


@pytest.mark.parametrize("regression", [False, True])
def test_baselines(regression: bool, request: pytest.FixtureRequest) -> None:
    """The nearest neighbours, the linear model and the trivial baseline, recomputed."""
    experiment, _, result, _ = request.getfixturevalue("values" if regression else "classes")
    data = experiment.task_data
    train_x, test_x = (part.x.double().flatten(1).numpy() for part in (data.train, data.test))
    train_y, test_y = (part.y[:, 0].double().numpy() for part in (data.train, data.test))
    models = (
        (KNeighborsRegressor(3), Ridge(), DummyRegressor())
        if regression
        else (KNeighborsClassifier(3), LogisticRegression(max_iter=300), DummyClassifier())
    )
    for baseline, model in zip(result["baselines"], models, strict=True):
        predicted = model.fit(train_x, train_y).predict(test_x)
        if regression:
            expected = data.unit * sk.root_mean_squared_error(test_y, predicted)
            assert baseline["metrics"]["rmse"] == pytest.approx(expected, rel=1e-4)
        else:
            assert baseline["metrics"]["accuracy"] == pytest.approx(sk.accuracy_score(test_y, predicted))
            expected = sk.f1_score(test_y, predicted, average="macro", zero_division=0)
            assert baseline["metrics"]["f1"] == pytest.approx(expected)
        assert baseline["value"] == baseline["metrics"][result["metric"]]


def test_evaluation_on_new_data(classes: Finished, tmp_path: Path) -> None:
    path, new, stored = classes.run.path, tmp_path / "new.npz", np.load(classes.data)
    x, y = stored["x"], stored["y"]
    np.savez(new, x=x[:29], y=y[:29])
    answers = predict_file(path, new)
    accuracy = sk.accuracy_score(y[:29], answers.columns["prediction"])
    assert evaluate_file(path, new)["metrics"]["accuracy"] == pytest.approx(accuracy)
    p = np.stack([answers.columns[f"proba_{label}"] for label in ("ant", "bee", "cow")], 1)
    assert p.sum(1) == pytest.approx(np.ones(29))
    assert answers.columns["probability"] == p.max(1).tolist()
    np.savez(new, x=x[:7])
    assert predict_file(path, new).metrics is None
    small.refused("new.npz holds x; expected x and y", evaluate_file, path, new)
    np.savez(new, x=x[:3], y=np.array(["ant", "dog", "bee"]))
    message = f"row 2 of {new} is none of the classes that the network was trained on: ant, bee, cow"
    small.refused(message, evaluate_file, path, new)
    assert predict_file(path, new).scored == 2


def test_misleading_accuracy_warning() -> None:
    y = np.array([0] * 986 + [1] * 14)
    (note,) = imbalance(y, ["ok", "fraud"])
    assert "986 of 1,000 test examples are of class ok" in note
    assert "accuracy of 0.986" in note
    assert imbalance(np.array([0, 1, 1, 0]), ["ok", "fraud"]) == []


def test_class_that_is_never_predicted() -> None:
    predicted, y = np.array([0, 0, 0]), np.array([0, 0, 1])
    by_class = per_class(predicted, y, ["a", "b", "c"])
    assert by_class["confusion"] == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert [(c["precision"], c["recall"]) for c in by_class["per_class"]] == [(2 / 3, 1), (0, 0), (0, 0)]


def test_balanced_class_weights_match_scikit_learn() -> None:
    asked = small.task_data()
    y = asked.train.y[:, 0].numpy()
    counts = np.bincount(y, minlength=small.CLASSES)
    assert counts.max() > counts[counts > 0].min()
    objective = Objective.of(asked, "balanced")
    expected = len(y) / (small.CLASSES * counts[counts > 0])
    assert np.array(objective.class_weights)[counts > 0] == pytest.approx(expected)
    scores = torch.randn(11, 1, small.CLASSES, generator=torch.Generator().manual_seed(0))
    target = asked.validation.y
    weights = np.array(objective.class_weights)[target[:, 0]]
    losses = -scores[:, 0].log_softmax(-1).gather(1, target)[:, 0].numpy()
    assert float(objective.loss(scores, target)) == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


def test_undefined_metric_is_refused() -> None:
    asked = small.task_data()
    assert with_metric(asked, "roc_auc").metric == "roc_auc"
    message = "--metric rmse cannot be computed here; choose from accuracy, balanced"
    small.refused(message, with_metric, asked, "rmse")
    assert "f1" in metrics_of(asked)


def test_failing_baselines_do_not_fail_the_run(tmp_path: Path) -> None:
    def failing() -> list[Any]:
        raise ValueError("this solver needs samples of at least 2 classes")

    ready = small.experiment(replace(small.task_data(), baselines=failing))
    run = train.start(ready, tmp_path / "run")
    _, result = train.train(ready, run)
    assert result is not None
    assert result["baselines"] == []
    assert any("needs samples of at least 2 classes" in note for note in result["notes"])
