"""A run is resumed and evaluated only on the data that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import refused

from attnlab.analysis.runs import study_run
from attnlab.training import train
from attnlab.training.experiment import check_same_data, prepare, same_values
from attnlab.training.runs import Run
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError

SETTINGS = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 5, "threads": 1, "seq_length": 11}


def documentation(version: int) -> tuple[bytes, ...]:
    return tuple(b"paragraph %d of the documentation of version %d" % (i * 7919 % 101, version) for i in range(53))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.tasks.text.standard_library", lambda: documentation(1))
        experiment = prepare(defaults("multihead", "text").updated(dict(SETTINGS), "the test"))
        run = train.start(experiment, tmp_path_factory.mktemp("same") / "run")
        train.train(experiment, run)
    return run


def resume(run: Run) -> Any:
    return train.train(prepare(run.settings), run, resume=True)


@pytest.mark.parametrize("command", [train.evaluate_run, resume, study_run])
def test_another_corpus_is_refused(command: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks.text.standard_library", lambda: documentation(1))
    command(run)
    monkeypatch.setattr("attnlab.tasks.text.standard_library", lambda: documentation(2))
    with pytest.raises(UserError, match=r"^this Python's documentation differs .* \(in sha256\); use the version"):
        command(run)


def test_changed_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"".join(b"line %d\n" % i for i in range(307)))
    changes = {**SETTINGS, "data": str(tmp_path / "x.txt")}
    experiment = prepare(defaults("multihead", "text").updated(changes, "the test"))
    run = train.start(experiment, tmp_path / "run")
    check_same_data(run, experiment.task_data)
    run.config["encoding"]["split_by"] = "position"
    message = f"x.txt is encoded differently than when {run.path} was started (in split_by); use the version"
    refused(message, check_same_data, run, experiment.task_data)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"mean": 1.7e9}, {"mean": 1.7e9 + 1e-6}, True),
        ({"mean": 1.7e9}, {"mean": 1.7e9 + 100}, False),
        ([1, "x", None], [1, "x", None], True),
        ([1], [True], False),
        ([1], [1, 1], False),
        ({"a": [0.5]}, {"b": [0.5]}, False),
        ({"a": ["1"]}, {"a": [1]}, False),
    ],
)
def test_same_values_up_to_rounding(a: Any, b: Any, same: bool) -> None:
    assert same_values(a, b) is same
