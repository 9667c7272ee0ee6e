"""Creation, overwriting, locking and recovery of run folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import KilledError, experiment, files, lines, refused, same, started

import attnlab
from attnlab.files.atomic import UNFINISHED
from attnlab.training import runs, train
from attnlab.training.folder import check_run_dir
from attnlab.training.listing import rows
from attnlab.training.locks import is_locked, lock
from attnlab.training.runs import Run


def test_default_run_dir_is_the_next_free_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(started(None).path) for _ in range(2)] == ["runs/digits-multihead-001", "runs/digits-multihead-002"]
    shutil.rmtree("runs/digits-multihead-001")
    (tmp_path / "runs/digits-multihead-003").touch()
    assert str(started(None).path) == "runs/digits-multihead-001"
    assert str(started(None).path) == "runs/digits-multihead-004", "what is in the way is left alone"
    assert not list(tmp_path.glob(f"runs/{UNFINISHED}*"))


def test_new_run_is_complete_from_the_start(tmp_path: Path) -> None:
    run = started(tmp_path / "a" / "b" / "run", dropout=0.25)
    assert Run.open(tmp_path / "a/b/run") == run
    assert run.settings.model.dropout == 0.25
    assert run.result() is None
    assert run.metrics() == []
    assert not run.began


def unchanged(folder: Path, message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """A call is refused and changes no file."""
    before = files(folder)
    refused(message, call, *args, **options)
    assert files(folder) == before


def test_existing_run_is_not_overwritten(copied: Path) -> None:
    message = f"exists; give another --run_dir, --resume {copied}, or --overwrite"
    unchanged(copied.parent, message, started, copied)


def test_overwrite_removes_the_earlier_run(copied: Path) -> None:
    (copied / f"{UNFINISHED}half").touch()
    started(copied, overwrite=True, dropout=0.25)
    assert [*files(copied.parent)] == ["copied/config.json"]
    assert Run.open(copied).settings.model.dropout == 0.25


@pytest.mark.parametrize("call", [check_run_dir, started])
@pytest.mark.parametrize("other", ["data.csv", "notes/draft.txt", "report.md/mine.txt"])
def test_overwrite_removes_only_what_a_run_wrote(other: str, call: Callable[..., Any], copied: Path) -> None:
    (copied / "report.md").unlink()
    (copied / other).parent.mkdir(exist_ok=True)
    (copied / other).write_text("mine", encoding="utf-8")
    message = f"removes only what a run wrote, and {copied} also holds {other.split('/')[0]}; move"
    unchanged(copied.parent, message, call, copied, overwrite=True)


@pytest.mark.parametrize("call", [check_run_dir, started])
@pytest.mark.parametrize("file", ["mine/thesis.tex", "mine", "mine/config.json"])
def test_overwrite_replaces_runs_only(file: str, call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text('{"name": 1}', encoding="utf-8")
    message = f"--overwrite replaces run folders only, and {tmp_path / 'mine'} is none"
    unchanged(tmp_path, message, call, tmp_path / "mine", overwrite=True)


def test_overwrite_accepts_empty_folders_and_damaged_runs(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "empty").mkdir()
    started(tmp_path / "empty", overwrite=True)
    config = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, "format": 99}), encoding="utf-8")
    started(copied, overwrite=True)
    assert Run.open(copied).config["format"] == runs.FORMAT


def test_impossible_run_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    unchanged(tmp_path, f"cannot make a run folder in {tmp_path / 'file'}", started, tmp_path / "file" / "run")


def test_unfinished_folders_are_removed_after_an_hour(tmp_path: Path) -> None:
    old, young = tmp_path / f"{UNFINISHED}old", tmp_path / f"{UNFINISHED}young"
    for left in (old, young):
        left.mkdir()
        (left / "config.json").touch()
    os.utime(old, (0, 0))
    started(tmp_path / "run")
    assert not old.exists()
    assert young.exists(), "someone may be making it"


def test_folder_is_locked(copied: Path) -> None:
    one, two, half = Run.open(copied), Run.open(copied), copied / f"{UNFINISHED}of one"
    half.touch()
    with one.alone():
        assert not half.exists(), "an unfinished file is removed when no other process holds the folder"
        half.touch()
        message = f"another process is training in {copied}; wait for it, or stop it"
        refused(message, two.alone().__enter__)
        refused(message, started, copied, overwrite=True)
        assert half.exists(), "not by another"
        assert is_locked(copied)
    assert not is_locked(copied)
    with pytest.raises(KilledError), two.alone():
        raise KilledError
    with two.alone():  # an error unlocks it too
        pass


def killed_at(change: int, action: Callable[[], Any]) -> bool:
    """Run an action in a process that is killed before its n-th change of the file system; whether it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    count = 0

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        action()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("read", ["open", "list", "create"])
def test_killed_overwrite_leaves_one_of_the_two_runs(read: str, done: Path, tmp_path: Path) -> None:
    before, ready, outcomes = files(done), experiment(dropout=0.25), []
    for change in range(1, 100):
        path = Path(shutil.copytree(done, tmp_path / str(change) / "run"))
        killed = killed_at(change, lambda path=path: train.start(ready, path, overwrite=True))  # type: ignore[misc]
        if read == "create":
            started(path.parent / "another")
        if read == "list":
            assert [row.run for row in rows(path.parent)] == [str(path)]
        run = Run.open(path)
        earlier = run.settings.model.dropout != 0.25
        outcomes.append(earlier)
        assert not earlier or files(path) == before, "the earlier run is whole"
        if not killed:
            break
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes.count(True) > 5
    assert outcomes.count(False) > 5
    assert [p.name for p in path.parent.iterdir() if p.name != "another"] == ["run"]


def test_failed_overwrite_keeps_the_earlier_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(UNFINISHED) and not self.name.endswith(".replaced"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    message = f"cannot make the run folder {copied}: No space left on device"
    unchanged(copied.parent, message, started, copied, overwrite=True)


def test_run_being_replaced_is_not_restored(copied: Path) -> None:
    earlier = copied.rename(copied.with_name(f"{UNFINISHED}copied.replaced"))
    held = lock(earlier)
    assert rows(copied.parent) == []
    os.utime(earlier, (0, 0))
    assert rows(copied.parent) == []
    assert (earlier / "config.json").is_file(), "however old it is"
    os.close(held)
    assert [row.run for row in rows(copied.parent)] == [str(copied)]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another folder", "a file"])
def test_earlier_run_is_removed_only_if_a_run_replaced_it(there: str, copied: Path) -> None:
    before = files(copied)
    earlier = copied.rename(copied.with_name(f"{UNFINISHED}copied.replaced"))
    os.utime(earlier, (0, 0))
    if there == "a file":
        copied.write_text("a note", encoding="utf-8")
    elif there != "nothing":
        copied.mkdir()
    if there == "another folder":
        (copied / "note").write_text("a note", encoding="utf-8")
    rows(copied.parent)
    assert files(earlier if there in ("another folder", "a file") else copied) == before


def test_sweep_does_not_follow_links(copied: Path, tmp_path: Path) -> None:
    """A received folder with a link to a run of the user."""
    before = files(copied)
    (tmp_path / "sent").mkdir()
    link = tmp_path / "sent" / f"{UNFINISHED}old"
    link.symlink_to(copied)
    os.utime(link, (0, 0), follow_symlinks=False)
    assert rows(tmp_path / "sent") == []
    assert files(copied) == before


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "removed working directory"])
def test_removed_folder_is_recovered_under_another_name(
    how: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, path = experiment(), tmp_path / "run"
    run = train.start(ready, path)
    if how == "removed working directory":
        monkeypatch.chdir(path)
        run = Run.open(Path())
    (tmp_path / "run-recovered").mkdir()

    def callback(seen: Any) -> None:
        if seen.step == 21:  # the best network may have been saved long before
            shutil.move(path, tmp_path / "elsewhere")
            if how.startswith("removed"):
                shutil.rmtree(tmp_path / "elsewhere")
            if how == "replaced":
                path.mkdir()

    _, result = train.train(ready, run, callback=callback)
    assert run.path == tmp_path / "run-recovered-2"
    assert result is not None
    assert result == Run.open(run.path).result()
    assert result["run"] == str(run.path)
    assert same(attnlab.load(run.path), attnlab.load(done))
    assert lines(run.path) == lines(done)
    assert how != "replaced" or list(path.iterdir()) == [], "what took its place is left alone"
