"""A whole run from settings to result and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import small
import torch

import attnlab
from attnlab import tasks
from attnlab.network import Network
from attnlab.training import assessment, hardware, objective, train
from attnlab.training.experiment import Experiment, prepare
from attnlab.training.inference import predict_file
from attnlab.training.loop import Outcome
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, defaults
from attnlab.utils.errors import UserError


def settings(task: str = "digits", **changes: Any) -> Settings:
    tiny = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 7, "threads": 1}
    return defaults("multihead", task).updated({**tiny, **changes}, "the test")


class Done(NamedTuple):
    """A finished run, read-only; for each split that was scored at the end, whether it was the test data."""

    experiment: Experiment
    run: Run
    result: dict[str, Any]
    scored: list[bool]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    experiment, scored, predict = prepare(settings()), list[bool](), assessment.predict

    def watched(network: Network, split: Any, **more: Any) -> Any:
        scored.append(split is experiment.task_data.test)
        return predict(network, split, **more)

    run = train.start(experiment, tmp_path_factory.mktemp("done") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "predict", watched)
        _, result = train.train(experiment, run)
    assert result is not None
    return Done(experiment, run, result, scored)


def test_every_task_without_a_file_can_be_prepared() -> None:
    for name in tasks.names():
        if not tasks.entry(name).needs_data and name != "text":  # text is as long as a corpus; its own tests read it
            experiment = prepare(settings(name))
            x, _, lengths = experiment.task_data.train
            scores = experiment.network(x[:3], None if lengths is None else lengths[:3])
            assert scores.shape[0] == 3
            assert torch.isfinite(scores).all()


def test_position_embedding_option() -> None:
    asked = {"position_embedding": "sinusoidal", "positions": "rotary(base=500)"}
    network = small.experiment(**asked).network
    assert network.position_embedding.name == "sinusoidal"
    assert network.mechanisms()[0].positions.base == 500
    assert small.experiment().network.position_embedding.name == "learned"


def test_initialization_depends_only_on_the_seed() -> None:
    first = prepare(settings())
    torch.randn(97)
    assert small.same(first.network, prepare(settings()).network)
    assert not small.same(first.network, prepare(settings(seed=1)).network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"multihead: embed_dim \(8\) must be divisible by num_heads \(3\)"),
        ({"task": "recall", "causal": False}, r"recall predicts the next token, so the network must be causal"),
        ({"device": "cuda:99"}, r"available: auto, cpu"),
        ({"embed_dim": 65536, "layers": 9}, r"parameters need .* reduce --embed_dim or --layers"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(settings(changes.pop("task", "digits"), **changes))


def test_the_result_is_of_the_best_network_on_the_test_data(done: Done) -> None:
    experiment, run, result, scored = done
    assert scored == [True]
    test = experiment.task_data.test
    scores = objective.predict(attnlab.load(run.path), test, batch_size=31)
    assert result["test"] == pytest.approx(float((scores.argmax(-1) == test.y).float().mean()))
    best = max(run.metrics(), key=lambda line: (line["validation_accuracy"], line["step"]))
    assert (result["validation"], result["best_step"]) == (best["validation_accuracy"], best["step"])
    assert {b["name"] for b in result["baselines"]} == {"majority class", "logistic regression", "3 nearest neighbours"}
    assert run.result() == result


def test_evaluate_run_gives_the_same_values(done: Done) -> None:
    again = train.evaluate_run(Run.open(done.run.path))
    assert small.without_times(again) == small.without_times(done.result)


@pytest.mark.usefixtures("no_curve")
def test_float64_network_stays_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks.digits.classifiers", lambda *_: [])
    experiment = prepare(settings(precision="float64"))
    run = train.start(experiment, tmp_path / "run")
    _, result = train.train(experiment, run)
    assert next(attnlab.load(run.path).parameters()).dtype == torch.float64
    assert result is not None
    assert train.evaluate_run(run)["test"] == result["test"]
    np.savez(tmp_path / "new.npz", x=experiment.task_data.test.x[:3].float().numpy())
    assert len(predict_file(run.path, tmp_path / "new.npz").columns["prediction"]) == 3


@pytest.mark.usefixtures("no_curve")
def test_mixed_precision_keeps_float32_parameters(tmp_path: Path) -> None:
    experiment = small.experiment(precision="bfloat16")
    run = train.start(experiment, tmp_path / "run")
    _, result = train.train(experiment, run)
    assert result is not None
    assert next(attnlab.load(run.path).parameters()).dtype == torch.float32


def test_predictions_are_those_of_the_network(done: Done, tmp_path: Path) -> None:
    run, x = done.run, done.experiment.task_data.test.x[:11]
    np.savez(tmp_path / "new.npz", x=x.numpy())
    run.export(tmp_path / "x.pth")
    answers = predict_file(run.path, tmp_path / "new.npz")
    assert answers.columns["prediction"] == attnlab.load(run.path)(x).argmax(-1).flatten().tolist()
    assert predict_file(tmp_path / "x.pth", tmp_path / "new.npz") == answers


@pytest.mark.parametrize(
    "arrays",
    [{"y": np.zeros(3)}, {"x": np.zeros((3, 8))}, {"x": np.zeros((3, 8, 7))}, {"x": np.zeros((3, 99, 8))},
     {"x": np.full((3, 8, 8), np.nan)}, {"x": np.array([None, {}])}],
)  # fmt: skip
def test_mismatched_data_are_refused(arrays: dict[str, Any], done: Done, tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", **arrays)
    small.refused("new.npz", predict_file, done.run.path, tmp_path / "new.npz")


def test_no_result_without_a_network(tmp_path: Path) -> None:
    run = small.started(tmp_path / "run")
    message = f"no evaluation gave a finite metric, so {run.path} holds no network"
    small.refused(message, train.evaluate_test, small.experiment(), run, Outcome("finished", 23, None, 0, 1.0))
    assert run.result() is None


def test_device_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(hardware, "prepare", lambda m, *_: asked.append(m) or torch.device("cpu"))
    assert prepare(settings()).device == torch.device("cpu")
    assert len(asked) == 1
