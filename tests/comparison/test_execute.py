"""Trials in this process, in workers, and on Ray: the same results, and a worker that dies loses only its trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from attnlab.comparison import execute
from attnlab.comparison.execute import ATTEMPTS, Endings, Run, in_processes, on_ray, one_by_one
from attnlab.comparison.plan import Case, Trial, plan_trials
from attnlab.comparison.trial import Outcome, read_result
from attnlab.training.signals import StoppedError
from tests.comparison.small import mark_and_maybe_die, settings, train_and_maybe_die


def trials(count: int = 3) -> list[Trial]:
    case = Case("multihead", settings("multihead"))
    return [trial for trial, _ in plan_trials([case], range(count), {case.name: 0.01})]


def stop(trial: Trial, folder: Path) -> Outcome:
    """As a run that a signal stopped."""
    return Outcome("stopped")


def starts(folder: Path) -> dict[str, int]:
    return {file.name: len(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("started-*"))}


def test_trials_one_by_one(tmp_path: Path) -> None:
    ended = list(one_by_one(trials(), tmp_path))
    assert [(trial.seed, outcome.how, outcome.reused) for trial, outcome in ended] == [
        (seed, "finished", False) for seed in range(3)
    ]
    results = [read_result(trial, tmp_path) for trial, _ in ended]
    assert all(results)
    again = list(one_by_one(trials(), tmp_path))
    assert all(outcome.reused for _, outcome in again)
    assert [read_result(trial, tmp_path) for trial, _ in again] == results


def test_a_trial_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    unknown = settings("multihead", task="table")  # which needs data
    (bad, _), *_ = plan_trials([Case("multihead", unknown)], [0], {"multihead": 0.01})
    outcomes = [outcome for _, outcome in one_by_one([bad, *trials(1)], tmp_path)]
    assert [outcome.how for outcome in outcomes] == ["failed", "finished"]
    assert "--data" in outcomes[0].error


def test_a_signal_while_data_are_loaded_stops_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "run_trial", lambda trial, folder: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(StoppedError) as stopped:
            list(one_by_one(trials(1), tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.signal == signal.SIGTERM


@pytest.mark.slow
def test_a_worker_that_dies_loses_only_its_trial(tmp_path: Path) -> None:
    run = partial(mark_and_maybe_die, deaths={1: 1, 2: 99})
    ended = {trial.seed: outcome for trial, outcome in in_processes(trials(4), tmp_path, 2, run)}
    assert {seed: outcome.how for seed, outcome in ended.items()} == {
        0: "finished",
        1: "finished",
        2: "failed",
        3: "finished",
    }
    assert "died 3 times" in ended[2].error
    assert starts(tmp_path) == {"started-0": 1, "started-1": 2, "started-2": ATTEMPTS, "started-3": 1}


@pytest.mark.slow
def test_a_signal_to_a_worker_stops_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        list(in_processes(trials(2), tmp_path, 2, stop))


@pytest.mark.slow
@pytest.mark.parametrize("execute", [in_processes, on_ray])
def test_workers_give_the_results_of_one_process(
    tmp_path: Path, execute: Callable[[list[Trial], Path, int, Run], Endings]
) -> None:
    if execute is on_ray:
        pytest.importorskip("ray")
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    run = partial(train_and_maybe_die, deaths={1: 1})
    ended = {trial.seed: outcome.how for trial, outcome in execute(trials(2), there, 2, run)}
    assert ended == {0: "finished", 1: "finished"}
    assert starts(there) == {"started-0": 1, "started-1": 2}
    for trial, _ in one_by_one(trials(2), here):
        results = [read_result(trial, folder) for folder in (here, there)]
        assert results[0] is not None
        assert results[1] is not None
        assert results[0]["test"] == results[1]["test"]
        model = [folder / "runs" / trial.folder / "model.safetensors" for folder in (here, there)]
        assert model[0].read_bytes() == model[1].read_bytes()


PARENT = """
import sys
from pathlib import Path
from attnlab.comparison.execute import in_processes
from attnlab.comparison.plan import Case, plan_trials
from tests.comparison.small import settings, train_and_tell
case = Case("multihead", settings("multihead", steps=20_000))
(trial, _), = plan_trials([case], [0], {case.name: 0.01})
list(in_processes([trial], Path(sys.argv[1]), 1, train_and_tell))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Otherwise they would train on, and the comparison that is started again would find their runs locked."""
    os.mkfifo(tmp_path / "pipe")
    with (
        subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)]) as parent,
        (tmp_path / "pipe").open(encoding="utf-8") as pipe,
    ):
        assert pipe.readline() == "started\n"
        parent.kill()
        rest = pipe.read()  # until the worker has ended
    assert rest in ("", "stopped\n")
