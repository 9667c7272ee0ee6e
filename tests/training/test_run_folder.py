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
from small import KilledError, experiment, files, same, started, untimed

import attnlab
from attnlab.files.atomic import UNFINISHED
from attnlab.training import runs, train
from attnlab.training.folder import check_run_dir
from attnlab.training.listing import find
from attnlab.training.locks import lock
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError


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


def test_existing_run_is_not_overwritten(copied: Path) -> None:
    before = files(copied)
    with pytest.raises(UserError, match=r"exists; give another --run_dir, --resume .*copied, or --overwrite"):
        started(copied)
    assert files(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


def test_overwrite_removes_the_earlier_run(copied: Path) -> None:
    (copied / f"{UNFINISHED}half").touch()
    started(copied, overwrite=True, dropout=0.25)
    assert [p.name for p in copied.iterdir()] == ["config.json"]
    assert Run.open(copied).settings.model.dropout == 0.25
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


@pytest.mark.parametrize("other", ["data.csv", "notes/draft.txt", "report.md/mine.txt"])
def test_overwrite_removes_only_what_a_run_wrote(other: str, copied: Path) -> None:
    if other == "report.md/mine.txt":
        (copied / "report.md").unlink(missing_ok=True)
    (copied / other).parent.mkdir(exist_ok=True)
    (copied / other).write_text("mine", encoding="utf-8")
    before = files(copied)
    name = other.split("/")[0]
    for ask in (lambda: check_run_dir(copied, overwrite=True), lambda: started(copied, overwrite=True)):
        with pytest.raises(UserError, match=f"removes only what a run wrote, and .*copied also holds {name}; move"):
            ask()
    assert files(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


@pytest.mark.parametrize("there", ["a folder of mine", "a file", "a package"])
def test_overwrite_replaces_runs_only(there: str, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    if there == "a file":
        place.write_text("mine", encoding="utf-8")
    else:
        place.mkdir()
        (place / ("config.json" if there == "a package" else "thesis.tex")).write_text('{"name": 1}', encoding="utf-8")
    before = files(tmp_path)
    for ask in (lambda: check_run_dir(place, overwrite=True), lambda: started(place, overwrite=True)):
        with pytest.raises(UserError, match=r"--overwrite replaces run folders only, and .*mine is none"):
            ask()
    assert files(tmp_path) == before


def test_overwrite_accepts_empty_folders_and_damaged_runs(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "empty").mkdir()
    started(tmp_path / "empty", overwrite=True)
    config = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, "format": 99}), encoding="utf-8")
    started(copied, overwrite=True)
    assert Run.open(copied).config["format"] == runs.FORMAT


def test_impossible_run_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make a run folder in .*file"):
        started(tmp_path / "file" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


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
    one, two = Run.open(copied), Run.open(copied)
    (copied / f"{UNFINISHED}of one").touch()
    with one.alone():
        assert not (copied / f"{UNFINISHED}of one").exists(), (
            "an unfinished run is removed when no other process holds the folder"
        )
        (copied / f"{UNFINISHED}of one").touch()
        with (
            pytest.raises(UserError, match=r"another process is training in .*copied; wait for it, or stop it"),
            two.alone(),
        ):
            pass
        assert (copied / f"{UNFINISHED}of one").exists(), "not by another"
        with pytest.raises(UserError, match=r"another process is training"):
            started(copied, overwrite=True)
    with two.alone():
        pass


def test_folder_is_unlocked_after_an_error(copied: Path) -> None:
    with pytest.raises(KilledError), Run.open(copied).alone():
        raise KilledError
    with Run.open(copied).alone():
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
@pytest.mark.parametrize("read", ["open", "find", "create"])
def test_killed_overwrite_leaves_one_of_the_two_runs(read: str, done: Path, tmp_path: Path) -> None:
    before, ready, outcomes = files(done), experiment(dropout=0.25), []
    for change in range(1, 100):
        path = Path(shutil.copytree(done, tmp_path / str(change) / "run"))
        killed = killed_at(change, lambda path=path: train.start(ready, path, overwrite=True))  # type: ignore[misc]
        if read == "create":
            started(path.parent / "another")
        if read == "find":
            assert [run.path.name for run in find(path.parent)] == ["run"]
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
    before, rename = files(copied), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(UNFINISHED) and not self.name.endswith(".replaced"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match=r"cannot make the run folder .*: No space left on device"):
        started(copied, overwrite=True)
    assert files(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


def test_run_being_replaced_is_not_restored(copied: Path) -> None:
    earlier = copied.rename(copied.with_name(f"{UNFINISHED}copied.replaced"))
    held = lock(earlier)
    assert find(copied.parent) == []
    os.utime(earlier, (0, 0))
    assert find(copied.parent) == []
    assert (earlier / "config.json").is_file(), "however old it is"
    os.close(held)
    assert [run.path.name for run in find(copied.parent)] == ["copied"]


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
    find(copied.parent)
    assert files(earlier if there in ("another folder", "a file") else copied) == before


def test_sweep_does_not_follow_links(copied: Path, tmp_path: Path) -> None:
    """A received folder with a link to a run of the user."""
    before = files(copied)
    (tmp_path / "sent").mkdir()
    link = tmp_path / "sent" / f"{UNFINISHED}old"
    link.symlink_to(copied)
    os.utime(link, (0, 0), follow_symlinks=False)
    assert find(tmp_path / "sent") == []
    assert files(copied) == before


def test_removed_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.training.report.draw_curve", lambda *_: None)
    ready, path = experiment(), tmp_path / "run"
    train.start(ready, path)
    monkeypatch.chdir(path)
    run = Run.open(Path())

    def callback(seen: Any) -> None:
        if seen.step == 21:
            shutil.rmtree(path)

    train.train(ready, run, callback=callback)
    assert run.path == tmp_path / "run-recovered"
    assert Run.open(run.path).result() is not None
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_removed_folder_is_recovered_under_another_name(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnlab.training.report.draw_curve", lambda *_: None)
    ready, path = experiment(), tmp_path / "run"
    run = train.start(ready, path)
    (tmp_path / "run-recovered").mkdir()

    def callback(seen: Any) -> None:
        if seen.step == 21:  # the best network may have been saved long before
            shutil.move(path, tmp_path / "elsewhere")
            if how == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
            if how == "replaced":
                path.mkdir()

    outcome, result = train.train(ready, run, callback=callback)
    assert run.path == tmp_path / "run-recovered-2"
    assert result == Run.open(run.path).result()
    assert result is not None
    assert result["run"] == str(run.path)
    undisturbed = train.start(experiment(), tmp_path / "undisturbed")
    assert train.train(experiment(), undisturbed)[0].best == outcome.best
    assert same(attnlab.load(run.path), attnlab.load(undisturbed.path))
    assert untimed(run.metrics()) == untimed(undisturbed.metrics())
    assert how != "replaced" or list(path.iterdir()) == [], "what took its place is left alone"


def test_whether_a_run_is_running(copied: Path) -> None:
    run = Run.open(copied)
    assert not run.is_running()
    with run.alone():
        assert Run.open(copied).is_running()
    assert not run.is_running()
