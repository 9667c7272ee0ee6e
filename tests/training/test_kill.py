"""Killed and stopped processes: the resumed run is bit-identical to an undisturbed one."""

from __future__ import annotations

import json
import random
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Server
from small import files, lines, same, without_times

from attnlab.files.atomic import UNFINISHED
from attnlab.training.checkpoint import load_tensors
from attnlab.training.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

KILLS = 8
STEPS = 80
TRAIN = [
    *("train", "--model", "multihead", "--task", "digits", "--embed_dim", "8", "--layers", "1", "--dropout", "0.1"),
    *("--steps", str(STEPS), "--learning_rate", "0.01", "--checkpoint_seconds", "0", "--quiet", "--snapshots", "5"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """An undisturbed run, with its numbers of file changes and writes."""
    folder = tmp_path_factory.mktemp("whole")
    assert server.wait(server.start([*TRAIN, "--run_dir", "run"], folder)) == 0, (folder / "stderr").read_text("utf-8")
    return folder / "run", json.loads((folder / "counted").read_text("utf-8"))


def assert_the_same_run(path: Path, expected: Path) -> None:
    """The content of a run without times and figures."""
    for name in ("model.safetensors", "state.safetensors"):
        (tensors, about), (wanted, about_wanted) = load_tensors(path / name), load_tensors(expected / name)
        assert same(tensors, wanted)
        assert without_times(about) == without_times(about_wanted)
    assert (path / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (path / "report.md").read_bytes() == (expected / "report.md").read_bytes()
    assert lines(path) == lines(expected)
    result, wanted_result = ({**(Run.open(p).result() or {}), "run": ""} for p in (path, expected))
    assert without_times(result) == without_times(wanted_result)
    assert wanted_result["steps"] == STEPS
    assert files(path / "snapshots") == files(expected / "snapshots")
    assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in expected.iterdir())


def command(path: Path) -> list[str]:
    """Start or resume the run."""
    if path.exists():
        return ["train", "--quiet", "--checkpoint_seconds", "0", "--resume", "run"]
    return [*TRAIN, "--run_dir", "run"]


def test_killed_at_random_moments(server: Server, whole: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    """Half of the moments are random file changes; half are in the middle of a write."""
    expected, counted = whole
    assert counted["write"] >= 12
    moments = random.Random(2)
    path, kills, in_a_write, ends = tmp_path / "run", 0, 0, 0
    while kills < KILLS:
        moment = ("change", moments.randint(1, counted["change"])) if kills % 2 else ("write", moments.randint(1, 12))
        process = server.start(command(path), tmp_path, kill_at=moment)
        if server.wait(process) == -signal.SIGKILL:
            kills += 1
            in_a_write += bool(list(path.glob(f"{UNFINISHED}*")))
        else:
            ends += 1
            assert_the_same_run(path, expected)
            shutil.rmtree(path)
    assert in_a_write > 0, "some of the kills left a file half written"
    assert server.wait(server.start(command(path), tmp_path)) == 0, (tmp_path / "stderr").read_text("utf-8")
    assert_the_same_run(path, expected)


@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopped_process_saves_and_prints_how_to_resume(
    which: signal.Signals, code: int, server: Server, whole: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    expected, _ = whole
    quietly = [word for word in TRAIN if word not in ("--checkpoint_seconds", "0")]
    process = server.start([*quietly, "--run_dir", "run"], tmp_path, signal_at=(31, which))
    assert server.wait(process) == code
    stderr = (tmp_path / "stderr").read_text("utf-8")
    assert stderr.count("\n") == 1
    match = re.fullmatch(rf"stopped at step (\d+) of {STEPS}; resume with: .* (--resume run)\n", stderr)
    assert match is not None, stderr
    assert load_tensors(tmp_path / "run/state.safetensors")[1]["step"] == int(match[1]) >= 31
    assert not (tmp_path / "run/result.json").exists()
    again = server.start(["train", "--quiet", *shlex.split(match[2])], tmp_path)
    assert server.wait(again) == 0, (tmp_path / "stderr").read_text("utf-8")
    assert_the_same_run(tmp_path / "run", expected)


def test_full_disk_stops_the_run_with_a_valid_checkpoint(
    server: Server, whole: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    expected, _ = whole
    process = server.start([*TRAIN, "--run_dir", "run"], tmp_path, file_size=(31, 1000))
    assert server.wait(process) == 2
    stderr = (tmp_path / "stderr").read_text("utf-8")
    assert re.fullmatch(r"error: cannot write run/\S+: File too large.*\n", stderr), stderr
    assert load_tensors(tmp_path / "run/state.safetensors")[1]["step"] > 0
    assert server.wait(server.start(command(tmp_path / "run"), tmp_path)) == 0
    assert_the_same_run(tmp_path / "run", expected)


def test_json_result_after_a_resume(server: Server, whole: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    expected, _ = whole
    shutil.copytree(expected, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()  # killed during the evaluation
    assert server.wait(server.start(["train", "--json", "--resume", "run"], tmp_path)) == 0
    assert json.loads((tmp_path / "stdout").read_text("utf-8")) == Run.open(tmp_path / "run").result()
    assert_the_same_run(tmp_path / "run", expected)
