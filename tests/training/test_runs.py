"""Altered files of a run are refused; a run resumes from its last checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small import KilledError, experiment, last, lines, refused, same, started, stop_at, trainer

import attnlab
from attnlab.training import runs, train
from attnlab.training.checkpoint import load_tensors, save_tensors
from attnlab.training.runs import Run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "was not written by attnlab, or altered"),
        ("{}", "was not written by attnlab, or altered"),
        ("[1]", "was not written by attnlab, or altered"),
        ('"text"', "was not written by attnlab, or altered"),
        ("[" * 100_000, "was not written by attnlab, or altered"),
        ('{"format": 99, "sha256": ""}', "has format 99; this attnlab reads format 2"),
        ('{"format": 2, "sha256": ""}', "was altered: its checksum does not match"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_foreign_config_is_refused(text: str, message: str, copied: Path) -> None:
    (copied / "config.json").write_text(text, encoding="utf-8")
    refused(message, Run.open, copied)


def test_every_setting_is_under_the_checksum(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text("utf-8"))
    for name in config["settings"]:
        altered = {**config, "settings": {**config["settings"], name: "other"}}
        (copied / "config.json").write_text(json.dumps(altered), encoding="utf-8")
        refused("was altered", Run.open, copied)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_a_checkpoint_of_another_run(name: str, other: Path, copied: Path) -> None:
    shutil.copy(other / name, copied / name)
    message = f"{name} belongs to another run than the config.json beside it"
    refused(message, trainer, copied)
    if name == "model.safetensors":
        refused(message, attnlab.load, copied)


def test_network_in_place_of_the_state_is_refused(copied: Path) -> None:
    shutil.copy(copied / "model.safetensors", copied / "state.safetensors")
    refused("state.safetensors holds only a network", trainer, copied)


def test_wrong_network_description_is_refused(copied: Path, tmp_path: Path) -> None:
    tensors, about = load_tensors(copied / "model.safetensors")
    for wrong in ({"embed_dim": 16}, {"model": "multihed"}, {"colour": 1}, {"options": {"num_heads": 3}}):
        save_tensors(tmp_path / "wrong.pth", tensors, {**about, "network": {**about["network"], **wrong}})
        refused("", attnlab.load, tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("config.json model.safetensors", "lacks its state.safetensors"),
        ("config.json metrics.jsonl", "lacks its state.safetensors"),
        ("config.json metrics.jsonl state.safetensors", "there is no checkpoint"),
    ],
)
def test_missing_checkpoints_are_refused(kept: str, message: str, copied: Path) -> None:
    for file in copied.iterdir():
        if file.name not in kept.split():
            file.unlink()
    refused(message, trainer, copied)


def test_incomplete_last_line_is_ignored(copied: Path) -> None:
    file, whole = copied / "metrics.jsonl", Run.open(copied).metrics()
    with file.open("a", encoding="utf-8") as open_file:
        open_file.write('{"step": 24, "epo')
    assert Run.open(copied).metrics() == whole
    Run.open(copied).rewind(23)
    assert Run.open(copied).metrics() == whole
    assert file.read_text("utf-8").endswith("\n"), "or the next line would be joined to it"


@pytest.mark.parametrize("line", ["no json\n", "[1]\n", "3\n", '{"epoch": 1}\n', '{"step": "1"}\n', "\n", "\xff\n"])
def test_damaged_line_is_refused(line: str, copied: Path) -> None:
    file = copied / "metrics.jsonl"
    file.write_bytes(line.encode("latin-1") + file.read_bytes())
    refused("metrics.jsonl is damaged", Run.open(copied).metrics)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"test": 1}'])
def test_damaged_result_is_refused(text: str, copied: Path) -> None:
    (copied / "result.json").write_text(text, encoding="utf-8")
    refused(f"; remove it, and --resume {copied} makes it again", Run.open(copied).result)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "mine.txt"
    data.write_text("one", encoding="utf-8")
    ready = experiment(data=str(data))
    run = train.start(ready, tmp_path / "run")
    runs.check_data(run)
    data.write_text("two", encoding="utf-8")
    refused(f"mine.txt was altered since {run.path} was started; restore the old file", runs.check_data, run)
    data.unlink()
    refused("mine.txt, which no longer exists; restore it", runs.check_data, run)


def test_run_without_a_checkpoint_starts_from_the_beginning(done: Path, tmp_path: Path) -> None:
    started(tmp_path / "cut")
    cut = trainer(tmp_path / "cut")
    cut.fit()
    assert same(cut.network, last(done))


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KilledError):
        trainer(path).fit(stop_at(7))
    assert [line["step"] for line in lines(path)] == list(range(1, 8))
    assert trainer(path).step == 6
    assert [line["step"] for line in lines(path)] == list(range(1, 7))
