"""Altered files of a run are refused; a run resumes from its last checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small import KilledError, experiment, last, lines, refused, same, started, stop_at, trainer

import attnlab
from attnlab.training import runs, train
from attnlab.training.runs import Run


def read(path: Path) -> None:
    run = Run.open(path)
    run.metrics()
    run.result()


@pytest.mark.parametrize(
    ("name", "message", "texts"),
    [
        ("config.json", "was not written by attnlab, or altered", ("", "{}", "[1]", '"text"', "[" * 100_000)),
        ("config.json", "has format 99; this attnlab reads format 2", ('{"format": 99, "sha256": ""}',)),
        ("config.json", "was altered: its checksum does not match", ('{"format": 2, "sha256": ""}',)),
        ("metrics.jsonl", "is damaged in line 1", ("no json", "[1]", "3", '{"epoch": 1}', '{"step": "1"}', "", "\xff")),
        ("result.json", "; remove it, and --resume", ("", "{", "[]", "3", '{"test": 1}')),
    ],
)
def test_damaged_files_are_refused(name: str, message: str, texts: tuple[str, ...], copied: Path) -> None:
    after = b"\n" + (copied / name).read_bytes() if name == "metrics.jsonl" else b""
    for text in texts:
        (copied / name).write_bytes(text.encode("latin-1") + after)
        refused(message, read, copied)


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


def test_repeated_lines_are_refused(copied: Path) -> None:
    file = copied / "metrics.jsonl"
    file.write_bytes(file.read_bytes() * 2)
    refused("metrics.jsonl is damaged in line 24: its step is not larger than that of the previous line", read, copied)
