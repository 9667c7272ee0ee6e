"""Initialization with the parameters of another network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CLASSES, experiment, refused, same, task_data

import attnlab
from attnlab.network import Network, Outputs
from attnlab.tasks.base import TaskData
from attnlab.training import train
from attnlab.training.experiment import Experiment, build, prepare
from attnlab.training.initial import check_weights, initialize
from attnlab.training.paths import file_hash
from attnlab.training.runs import Run
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError


def fresh(asked: TaskData | None = None, **changes: Any) -> Network:
    return experiment(asked, seed=5, **changes).network


@pytest.mark.parametrize("kind", ["run", "x.safetensors", "x.pth"])
def test_all_parameters_are_copied(kind: str, done: Path, tmp_path: Path) -> None:
    path = done
    if kind != "run":
        path = tmp_path / kind
        Run.open(done).export(path)
    network = fresh()
    assert not same(network, attnlab.load(done))
    sha256, lines = initialize(network, path, {})
    assert same(network, attnlab.load(done))
    assert sha256 == file_hash(str(done / "model.safetensors" if kind == "run" else path))
    assert lines == [f"starts from the parameters of {path}"]


def test_output_layer_is_new_for_other_classes(done: Path) -> None:
    network = fresh(replace(task_data(), outputs=Outputs("classes", 3)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _, lines = initialize(network, done, {})
    assert lines[1] == f"the output layer is new: {CLASSES} classes there, 3 classes here"
    for name, tensor in network.state_dict().items():
        expected = before if name.startswith("readout.") else attnlab.load(done).state_dict()
        assert torch.equal(tensor, expected[name]), name


def test_changed_columns_reset_the_embedding(tmp_path: Path) -> None:
    """Two tables of one shape, with other classes and other categories under the same codes."""

    def ready(name: str, labels: str, towns: str) -> Experiment:
        rows = [f"{i * 7 % 13},{towns[i % 3]},{labels[i % 2]}" for i in range(61)]
        (tmp_path / name).write_text("\n".join(["a,town,way", *rows]) + "\n", encoding="utf-8")
        small = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 2}
        values = {**small, "data": str(tmp_path / name), "target": "way"}
        return prepare(defaults("multihead", "table").updated(values, "the test"))

    first = ready("first.csv", "xy", "BZG")
    run = train.start(first, tmp_path / "first")
    train.train(first, run)
    weights = attnlab.load(run.path).state_dict()
    for name, labels, towns, fresh in (
        ("same.csv", "xy", "BZG", ()),
        ("classes.csv", "pq", "BZG", ("readout.",)),
        ("towns.csv", "xy", "BZK", ("embed.",)),
    ):
        again = ready(name, labels, towns)
        _, lines = initialize(again.network, run.path, again.task_data.encoding)
        assert len(lines) == 1 + len(fresh), lines
        for key, tensor in again.network.state_dict().items():
            if key.startswith(fresh) and fresh:
                assert not torch.equal(tensor, weights[key]) or not tensor.any(), key
            else:
                assert torch.equal(tensor, weights[key]), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 12}, r"embed\.weight is \(8, 3\) there and \(12, 3\) here; .*, and \d+ more; use the"),
        ({"layers": 2}, r"blocks\.1\.norm1\.weight is missing there and \(8,\) here; .*, and \d+ more; use the"),
        ({"mlp": False}, r"blocks\.0\.norm2\.weight is \(8,\) there and missing here; "),
        ({"position_embedding": "none"}, r"position_embedding\.table is \(5, 8\) there and missing here; use"),
        ({"bias": False}, r"blocks\.0\.attention\.qkv\.bias is \(24,\) there and missing here"),
    ],
)  # fmt: skip
def test_another_shape_is_refused_by_name(changes: dict[str, Any], message: str, done: Path) -> None:
    network = fresh(**changes)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=message):
        initialize(network, done, {})
    assert same(network.state_dict(), before), "a refusal changes nothing"


def test_another_mechanism_is_refused(done: Path) -> None:
    ready = experiment(seed=5)
    settings = ready.settings
    settings.model.model, settings.model.options = "groupedquery", {"num_heads": 2, "num_kv_heads": 2}
    message = "holds a multihead network, but the run trains groupedquery; give --model multihead"
    refused(message, initialize, build(settings, ready.task_data), done, {})


def test_differing_options_are_printed(done: Path) -> None:
    _, lines = initialize(fresh(num_heads=4), done, {})
    assert lines[1:] == ["num_heads was 2 there and is 4 here"]


def test_missing_init_from_is_refused(tmp_path: Path) -> None:
    train.start(experiment(), tmp_path / "new")
    for name, message in {"new": "has no network yet", "none": "none is not there", "none.pth": "is not there"}.items():
        refused(f"{message}; give a run, or a file", initialize, fresh(), tmp_path / name, {})


# A run that starts so


def ready(source: Path, monkeypatch: pytest.MonkeyPatch, *, began: bool = False, **changes: Any) -> Experiment:
    """An experiment on the small task, initialized from another run."""
    monkeypatch.setattr("attnlab.training.experiment.load_task_data", lambda _: task_data())
    return prepare(experiment(init_from=str(source), seed=5, threads=1, **changes).settings, began=began)


def test_run_records_the_initial_parameters(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.parent)
    made = ready(Path("run"), monkeypatch)
    assert same(made.network, attnlab.load(done))
    assert made.task_data.summary_lines[-1] == "starts from the parameters of run"
    run = train.start(made, tmp_path / "new")
    assert run.config["settings"]["init_from"] == str(done)
    assert run.config["init_sha256"] == file_hash(str(done / "model.safetensors"))
    check_weights(run)
    assert train.start(experiment(), tmp_path / "other").config["init_sha256"] is None


def test_resumed_runs_are_bit_identical(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a checkpoint does not need the initial parameters."""
    copied = Path(shutil.copytree(done, tmp_path / "source"))
    made = ready(copied, monkeypatch, steps=7)
    train.train(made, train.start(made, tmp_path / "whole"))
    again = ready(copied, monkeypatch, steps=7)
    train.start(again, tmp_path / "cut")  # and killed before its first checkpoint
    train.train(ready(copied, monkeypatch, steps=7), Run.open(tmp_path / "cut"), resume=True)
    assert same(attnlab.load(tmp_path / "cut"), attnlab.load(tmp_path / "whole"))
    shutil.rmtree(copied)
    outcome, _ = train.train(ready(copied, monkeypatch, began=True, steps=7), Run.open(tmp_path / "cut"), resume=True)
    assert outcome.step == 7


def test_other_parameters_than_recorded_are_refused(
    done: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(done, tmp_path / "source"))
    run = train.start(ready(copied, monkeypatch), tmp_path / "new")
    shutil.copy(other / "model.safetensors", copied / "model.safetensors")
    refused(f"the parameters in {copied} were altered since {run.path} was created", check_weights, run)
