"""The run folder: never overwritten by chance, never two in one, and found out when it was altered."""

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
import torch
from small import KilledError, experiment, same, stop_at, trainer, untimed

import attnlab
from attnlab.files.atomic import UNFINISHED
from attnlab.training import runs, train
from attnlab.training.checkpoint import check_output, load_tensors, save_tensors
from attnlab.training.folder import check_run_dir, lock
from attnlab.training.loop import raising_signals, signals
from attnlab.training.runs import Damaged, Run, check_save_path, find
from attnlab.utils.errors import UserError


def started(path: Path | None, *, overwrite: bool = False, **said: Any) -> Run:
    return train.start(experiment(**said), path, overwrite=overwrite)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained to its end; only to be read."""
    path = tmp_path_factory.mktemp("done") / "run"
    trainer(path).fit()
    return path


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(done, tmp_path / "copied"))


# Where a run goes


def test_without_a_name_the_next_free_number_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(started(None).path) for _ in range(2)] == ["runs/digits-multihead-001", "runs/digits-multihead-002"]
    shutil.rmtree("runs/digits-multihead-001")
    (tmp_path / "runs/digits-multihead-003").touch()
    assert str(started(None).path) == "runs/digits-multihead-001"
    assert str(started(None).path) == "runs/digits-multihead-004", "what is in the way is left alone"
    assert not list(tmp_path.glob(f"runs/{UNFINISHED}*"))


def test_a_new_run_is_whole_from_the_start(tmp_path: Path) -> None:
    run = started(tmp_path / "a" / "b" / "run", dropout=0.25)
    assert Run.open(tmp_path / "a/b/run") == run
    assert run.settings.model.dropout == 0.25
    assert run.result() is None
    assert run.metrics() == []
    assert not run.began


def test_an_earlier_run_is_never_overwritten_unasked(copied: Path) -> None:
    before = files(copied)
    with pytest.raises(UserError, match=r"exists; give another --run_dir, --resume .*copied, or --overwrite"):
        started(copied)
    assert files(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["copied"]


def test_overwrite_leaves_nothing_of_the_earlier_run(copied: Path) -> None:
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


def test_overwrite_takes_an_empty_folder_and_a_damaged_run(tmp_path: Path, copied: Path) -> None:
    (tmp_path / "empty").mkdir()
    started(tmp_path / "empty", overwrite=True)
    config = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, "format": 99}), encoding="utf-8")
    started(copied, overwrite=True)
    assert Run.open(copied).config["format"] == runs.FORMAT


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make a run folder in .*file"):
        started(tmp_path / "file" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_a_kill_left_half_made_is_swept_away_an_hour_later(tmp_path: Path) -> None:
    old, young = tmp_path / f"{UNFINISHED}old", tmp_path / f"{UNFINISHED}young"
    for left in (old, young):
        left.mkdir()
        (left / "config.json").touch()
    os.utime(old, (0, 0))
    started(tmp_path / "run")
    assert not old.exists()
    assert young.exists(), "someone may be making it"


# One at a time


def test_two_cannot_train_in_one_folder(copied: Path) -> None:
    one, two = Run.open(copied), Run.open(copied)
    (copied / f"{UNFINISHED}of one").touch()
    with one.alone():
        assert not (copied / f"{UNFINISHED}of one").exists(), "swept away by whoever is alone"
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


def test_a_folder_is_free_again_after_an_error(copied: Path) -> None:
    with pytest.raises(KilledError), Run.open(copied).alone():
        raise KilledError
    with Run.open(copied).alone():
        pass


# What was altered


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
def test_a_config_that_is_not_ours(text: str, message: str, copied: Path) -> None:
    (copied / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Run.open(copied)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_setting_is_under_the_checksum(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text("utf-8"))
    for name in config["settings"]:
        altered = {**config, "settings": {**config["settings"], name: "other"}}
        (copied / "config.json").write_text(json.dumps(altered), encoding="utf-8")
        with pytest.raises(UserError, match=r"was altered"):
            Run.open(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_a_checkpoint_of_another_run(name: str, copied: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "other", weight_decay=0.5).fit()
    shutil.copy(tmp_path / "other" / name, copied / name)
    with pytest.raises(UserError, match=f"{name} belongs to another run than the config.json beside it"):
        trainer(copied)
    if name == "model.safetensors":
        with pytest.raises(UserError, match=r"belongs to another run"):
            attnlab.load(copied)


def test_a_network_in_place_of_the_state(copied: Path) -> None:
    shutil.copy(copied / "model.safetensors", copied / "state.safetensors")
    with pytest.raises(UserError, match=r"state.safetensors holds a network alone"):
        trainer(copied)


def test_a_network_that_does_not_fit_what_it_says(copied: Path, tmp_path: Path) -> None:
    tensors, about = load_tensors(copied / "model.safetensors")
    for wrong in ({"embed_dim": 16}, {"model": "multihed"}, {"colour": 1}, {"options": {"num_heads": 3}}):
        path = tmp_path / "wrong.safetensors"
        save_tensors(path, tensors, {**about, "network": {**about["network"], **wrong}})
        with pytest.raises(UserError) as caught:
            attnlab.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", ["model.safetensors", "metrics.jsonl"])
def test_a_run_that_began_and_lost_its_state_does_not_begin_again(left: str, copied: Path) -> None:
    for file in copied.iterdir():
        if file.name not in ("config.json", left):
            file.unlink()
    with pytest.raises(UserError, match=r"has lost its state\.safetensors"):
        trainer(copied)


def test_a_run_that_lost_its_network_does_not_go_on(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no checkpoint .*model.safetensors"):
        trainer(copied)


def test_a_line_that_a_kill_cut_short_is_left_out(copied: Path) -> None:
    file, whole = copied / "metrics.jsonl", Run.open(copied).metrics()
    with file.open("a", encoding="utf-8") as open_file:
        open_file.write('{"step": 24, "epo')
    assert Run.open(copied).metrics() == whole
    Run.open(copied).rewind(23)
    assert Run.open(copied).metrics() == whole
    assert file.read_text("utf-8").endswith("\n"), "or the next line would be joined to it"


@pytest.mark.parametrize("line", ["no json\n", "[1]\n", "3\n", '{"epoch": 1}\n', '{"step": "1"}\n', "\n", "\xff\n"])
def test_a_line_that_was_damaged_is_said(line: str, copied: Path) -> None:
    file = copied / "metrics.jsonl"
    file.write_bytes(line.encode("latin-1") + file.read_bytes())
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        Run.open(copied).metrics()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"test": 1}'])
def test_a_result_that_was_damaged_is_said(text: str, copied: Path) -> None:
    (copied / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json is damaged: .*; remove it, and --resume"):
        Run.open(copied).result()


# Finding and exporting


def test_runs_are_found_by_name_and_others_passed_over(tmp_path: Path) -> None:
    for name in ("b", "a", f"{UNFINISHED}c"):
        started(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{", encoding="utf-8")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    found = find(tmp_path)
    assert [(run.path.name, type(run)) for run in found] == [("a", Run), ("b", Run), ("broken", Damaged)]
    assert isinstance(found[2], Damaged)
    assert "was not written by attnlab, or altered" in found[2].reason
    assert find(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "models/deep/x.safetensors"])
def test_an_exported_network_is_the_same(
    name: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_save_path(Path(name))
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"
    Run.open(done).export(Path(name))
    network, x = attnlab.load(name), experiment().task_data.test
    assert same(network, attnlab.load(done))
    assert not network.training
    assert torch.equal(network(x.x, x.lengths), attnlab.load(done)(x.x, x.lengths))


def test_paths_that_a_network_cannot_be_saved_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.pth").mkdir()
    Path("link.pth").symlink_to("file/x.pth")
    before = sorted(tmp_path.rglob("*"))
    for name, message in {
        "x": "must end in .safetensors, .pth or .pt",
        "x.bin": "must end in .safetensors, .pth or .pt",
        "x.PTH": "must end in .safetensors, .pth or .pt",
        "folder.pth": "is a folder; name a file in it",
        "file/x.pth": "cannot write --save_path file/x.pth: Not a directory",
        "file/deep/x.pth": "cannot write --save_path file/deep/x.pth: Not a directory",
        "/proc/x.pth": "cannot write --save_path /proc/x.pth: ",
        "link.pth": "cannot write --save_path link.pth: Not a directory",
        f"{'x' * 300}.pth": "File name too long",
        f"{'x' * 300}/x.pth": "File name too long",
        f"new/{'x' * 300}/x.pth": "File name too long",
    }.items():
        with pytest.raises(UserError) as caught:
            check_save_path(Path(name))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_paths_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch(0o400)
    (tmp_path / "locked").mkdir(0o500)
    for name in ("x.pth", "locked/x.pth", "locked/new/x.pth"):
        with pytest.raises(UserError, match=r"Permission denied"):
            check_save_path(tmp_path / name)


def test_an_export_through_a_link_arrives_at_its_end(done: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "x.pth", tmp_path / "not there yet" / "deep" / "y.pth"
    link.symlink_to(target)
    check_save_path(link)
    Run.open(done).export(link)
    assert link.is_symlink()
    assert same(attnlab.load(target), attnlab.load(done))


def test_a_run_of_other_data_does_not_go_on(tmp_path: Path) -> None:
    data = tmp_path / "mine.txt"
    data.write_text("one", encoding="utf-8")
    ready = experiment(data=str(data))
    run = train.start(ready, tmp_path / "run")
    runs.check_data(run)
    data.write_text("two", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.txt was altered since .*run was started; put the old file back"):
        runs.check_data(run)
    data.unlink()
    with pytest.raises(UserError, match=r"was trained on .*mine\.txt, which is not there any more; put it back"):
        runs.check_data(run)


def test_a_run_killed_before_its_first_checkpoint_begins_at_its_beginning(tmp_path: Path) -> None:
    started(tmp_path / "cut")
    cut, whole = trainer(tmp_path / "cut"), trainer(tmp_path / "whole")
    cut.fit()
    whole.fit()
    assert same(cut.network, whole.network)


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    cut = trainer(tmp_path / "run")
    with pytest.raises(KilledError):
        cut.fit(stop_at(7))
    assert [line["step"] for line in Run.open(tmp_path / "run").metrics()] == list(range(1, 8))
    assert trainer(tmp_path / "run").step == 6
    assert [line["step"] for line in Run.open(tmp_path / "run").metrics()] == list(range(1, 7))


# Folders that vanish, and processes that are killed while they replace one


def killed_at(change: int, action: Callable[[], Any]) -> bool:
    """Whether a process that does something was killed before its so-manyth change of the file system."""
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
def test_an_overwrite_that_was_killed_leaves_one_of_the_two_runs(read: str, done: Path, tmp_path: Path) -> None:
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


def test_a_failing_overwrite_leaves_the_earlier_run(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_earlier_run_is_not_taken_from_a_process_that_replaces_it(copied: Path) -> None:
    earlier = copied.rename(copied.with_name(f"{UNFINISHED}copied.replaced"))
    held = lock(earlier)
    assert find(copied.parent) == []
    os.utime(earlier, (0, 0))
    assert find(copied.parent) == []
    assert (earlier / "config.json").is_file(), "however old it is"
    os.close(held)
    assert [run.path.name for run in find(copied.parent)] == ["copied"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another folder", "a file"])
def test_an_earlier_run_is_removed_only_where_another_run_took_its_place(there: str, copied: Path) -> None:
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


def test_a_link_that_looks_unfinished_is_not_followed(copied: Path, tmp_path: Path) -> None:
    """A folder from somebody else, with a link to a run of the user."""
    before = files(copied)
    (tmp_path / "sent").mkdir()
    link = tmp_path / "sent" / f"{UNFINISHED}old"
    link.symlink_to(copied)
    os.utime(link, (0, 0), follow_symlinks=False)
    assert find(tmp_path / "sent") == []
    assert files(copied) == before


def test_a_working_directory_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_folder_that_vanishes_is_made_again_under_another_name(
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


# Signals


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_result_is_computed_stops_and_is_resumed(
    which: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnlab.training.report.draw_curve", lambda *_: None)
    run = started(tmp_path / "run")
    before = signal.signal(which, handler := lambda *_: None)  # nohup and scripts start us with some of them ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(train, "_result", lambda *_: signal.raise_signal(which))
            outcome, result = train.train(experiment(), run)
        assert signal.getsignal(which) == handler
    finally:
        signal.signal(which, before)
    assert (outcome.how, outcome.signal, result) == ("stopped", which, None)
    _, result = train.train(experiment(), run, resume=True)
    assert result is not None
    assert result == run.result()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals() as asked, raising_signals():
            signal.raise_signal(signal.SIGINT)
        assert asked == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# Files of the user's


def test_a_file_is_saved_over_our_own_only(done: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"--save_path .*mine\.safetensors exists; give another name, or --overwrite"):
        check_save_path(mine)
    check_save_path(mine, overwrite=True)
    for name in ("ours.safetensors", "ours.pth"):
        Run.open(done).export(tmp_path / name)
        check_save_path(tmp_path / name)
        with pytest.raises(UserError, match=r"is a file of the run in"):
            check_save_path(done / "model.safetensors", overwrite=True)
    torch.save({"state_dict": {}}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"theirs\.pth exists"):
        check_save_path(tmp_path / "theirs.pth")


def test_an_output_replaces_nothing_unasked_and_its_input_never(tmp_path: Path) -> None:
    read, other = tmp_path / "data.csv", tmp_path / "other.csv"
    for path in (read, other):
        path.write_text("a\n", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(read)
    (tmp_path / "hard.csv").hardlink_to(read)
    check_output(tmp_path / "new.csv", inputs=[read])
    check_output(other, inputs=[read], overwrite=True)
    with pytest.raises(UserError, match=r"--output .*other\.csv exists; give another name, or --overwrite"):
        check_output(other, inputs=[read])
    for name in ("data.csv", "link.csv", "hard.csv"):
        with pytest.raises(UserError, match=r"is the file that is read; give another name"):
            check_output(tmp_path / name, inputs=[read], overwrite=True)
    with pytest.raises(UserError, match=r"is a folder"):
        check_output(tmp_path, inputs=[])
