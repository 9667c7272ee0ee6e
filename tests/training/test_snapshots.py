"""Snapshots of the network during training (``--snapshots``)."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from small import KilledError, experiment, files, last, refused, same, settings, started, stop_at, trainer
from small import write_checkpoint as write

import attnlab
from attnlab.files.atomic import UNFINISHED
from attnlab.training import train
from attnlab.training.checkpoint import load_tensors
from attnlab.training.folder import check_run_dir, check_save_path
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run
from attnlab.training.settings import check

STEPS, ALL = 23, 24
FIVE = [0, 1, 3, 8, 23]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with a snapshot of every step, read-only."""
    path = tmp_path_factory.mktemp("whole") / "run"
    trainer(path, snapshots=ALL).fit()
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def snapshots(path: Path) -> dict[str, bytes]:
    return files(path / "snapshots")


def test_snapshots_are_the_network_at_their_step(whole: Path) -> None:
    run, alone = Run.open(whole), trainer()
    torch.manual_seed(alone.settings.training.seed + 2**32)  # as `Trainer.fit` does
    expected = [deepcopy(alone.network)]
    for _ in range(STEPS):
        alone.training_step()
        expected.append(deepcopy(alone.network))
    assert run.snapshots() == list(range(ALL))
    assert all(same(run.load_snapshot(step), network) for step, network in enumerate(expected))
    assert not same(expected[0], expected[1])
    assert same(run.load_snapshot(STEPS), last(whole))
    assert not run.load_snapshot(3).training
    assert same(attnlab.load(run.snapshot_file(3)), run.load_snapshot(3)), "it is a file like model.safetensors"


def test_steps_are_on_a_logarithmic_scale(tmp_path: Path) -> None:
    trainer(tmp_path / "run", snapshots=5).fit()
    assert Run.open(tmp_path / "run").snapshots() == FIVE
    assert [*snapshots(tmp_path / "run")] == [f"step-{step:08d}.safetensors" for step in FIVE]
    trainer(tmp_path / "none").fit()
    assert not (tmp_path / "none/snapshots").exists()


def test_training_does_not_depend_on_snapshots(whole: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "run").fit()
    assert same(last(tmp_path / "run"), last(whole))


@pytest.mark.parametrize("count", [-1, 101])
def test_at_most_a_hundred(count: int) -> None:
    refused(f"snapshots must be from 0 to 100, not {count}", check, settings(snapshots=count))


def test_resumed_run_has_the_same_snapshots(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KilledError):
        trainer(path, snapshots=ALL).fit(stop_at(11))
    assert Run.open(path).snapshots() == list(range(12)), "the last checkpoint is of step 10"
    half = path / "snapshots" / f"{UNFINISHED}half.safetensors"
    half.touch()
    with Run.open(path).alone():
        assert not half.exists(), "an unfinished file is removed"
        resumed = trainer(path, snapshots=ALL)
        assert Run.open(path).snapshots() == list(range(11)), "those after the checkpoint are removed"
        resumed.fit()
    assert snapshots(path) == snapshots(whole)


@pytest.mark.usefixtures("no_curve")
def test_extended_run_keeps_its_snapshots_and_adds_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "run"
    train.train(experiment(snapshots=5), train.start(experiment(snapshots=5), path))
    before = snapshots(path)
    train.train(experiment(snapshots=5, steps=64), Run.open(path), resume=True)
    assert Run.open(path).snapshots() == [*FIVE, 64], "of 0, 1, 4, 16 and 64"
    assert before.items() <= snapshots(path).items()


@pytest.mark.usefixtures("no_curve")
def test_a_folder_that_was_removed_keeps_its_snapshots(whole: Path, tmp_path: Path) -> None:
    ready, path = experiment(snapshots=ALL), tmp_path / "run"
    with pytest.raises(KilledError):
        trainer(path, snapshots=ALL).fit(stop_at(6))  # those of an earlier process are kept, too
    run = Run.open(path)
    train.train(ready, run, resume=True, callback=lambda seen: shutil.rmtree(path) if seen.step == 11 else None)
    assert run.path == tmp_path / "run-recovered"
    assert snapshots(run.path) == snapshots(whole)


# Folders


def test_overwrite_removes_the_snapshots(copied: Path) -> None:
    (copied / "snapshots" / f"{UNFINISHED}half").touch()
    started(copied, overwrite=True)
    assert [*files(copied.parent)] == ["copied/config.json"]
    assert not (copied / "snapshots").exists()


@pytest.mark.parametrize("mine", ["snapshots/note.txt", "snapshots/step-3.safetensors", "snapshots/old/a.txt"])
def test_overwrite_keeps_other_files_among_the_snapshots(mine: str, copied: Path) -> None:
    (copied / mine).parent.mkdir(exist_ok=True)
    (copied / mine).write_text("mine", encoding="utf-8")
    before, name = files(copied), "/".join(mine.split("/")[:2])
    refused(f"also holds {name}; move", check_run_dir, copied, overwrite=True)
    refused(f"also holds {name}; move", started, copied, overwrite=True)
    assert files(copied) == before


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_links_are_not_followed(kind: str, copied: Path, tmp_path: Path) -> None:
    """A received folder whose snapshots are somewhere else."""
    outside = tmp_path / "outside"
    shutil.move(copied / "snapshots", outside)
    (outside / f"{UNFINISHED}mine").touch()
    before = files(outside)
    if kind == "file":
        (copied / "snapshots").touch()
    else:
        (copied / "snapshots").symlink_to(outside if kind == "link" else tmp_path / "missing")
    run = Run.open(copied)
    assert run.snapshots() == []
    with run.alone():
        run.rewind(0)
        refused("snapshots", run.save_snapshot, 3, run.load_model())
    refused("also holds snapshots; move", started, copied, overwrite=True) if kind != "file" else None
    assert files(outside) == before
    assert not (tmp_path / "missing").exists()


def test_one_snapshot_may_be_a_link(copied: Path, tmp_path: Path) -> None:
    run = Run.open(copied)
    run.snapshot_file(3).rename(tmp_path / "outside")
    run.snapshot_file(3).symlink_to(tmp_path / "outside")
    refused("is a symbolic link, which is not followed", run.load_snapshot, 3)


def test_save_path_is_no_snapshot(copied: Path) -> None:
    file = copied / "snapshots/step-00000003.safetensors"
    refused("is a file of the run", check_save_path, file, overwrite=True)


# Received files


def test_unknown_step_is_refused_with_the_known_ones(copied: Path, tmp_path: Path) -> None:
    run = Run.open(copied)
    for step in range(2, STEPS):
        run.snapshot_file(step).unlink()
    refused("has no snapshot of step 7; there are those of 0, 1, 23", run.load_snapshot, 7)
    refused("has no snapshot of step 7; it has none; train with --snapshots", started(tmp_path / "b").load_snapshot, 7)


def test_snapshot_of_another_step_or_run_is_refused(copied: Path, other: Path) -> None:
    run = Run.open(copied)
    shutil.copy(run.snapshot_file(4), run.snapshot_file(3))
    refused("step-00000003.safetensors is the snapshot of another step; restore it", run.load_snapshot, 3)
    shutil.copy(other / "model.safetensors", run.snapshot_file(3))
    refused("step-00000003.safetensors belongs to another run", run.load_snapshot, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 4}, "does not match the network that it describes"),
        ({"causal": True}, "has another network than the config.json beside it"),
        ({"layers": 10**9}, "describes no network that can be built"),
    ],
)
def test_damaged_snapshot_is_refused(change: dict[str, Any], message: str, copied: Path) -> None:
    file = Run.open(copied).snapshot_file(3)
    tensors, about = load_tensors(file)
    write(file, tensors, {**about, "network": {**about["network"], **change}})
    refused(message, Run.open(copied).load_snapshot, 3)
    file.write_bytes(b"short")
    refused("is truncated or not a checkpoint", Run.open(copied).load_snapshot, 3)


def test_network_with_nan_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, step = trainer(tmp_path / "run", snapshots=ALL), Trainer.training_step

    def spoiled(self: Trainer) -> Any:
        loss = step(self)
        if self.step == 4:
            self.parameters[0].data[0] = float("nan")
        return loss

    monkeypatch.setattr(Trainer, "training_step", spoiled)
    refused("a parameter became NaN or infinite at step 4", made.fit)
    assert Run.open(tmp_path / "run").snapshots() == [0, 1, 2, 3]
