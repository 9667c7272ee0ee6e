"""Run trials one after another, in worker processes of this machine, or on a Ray cluster.

A worker that dies loses only its trial, which another worker resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from attnlab.comparison.plan import Trial
from attnlab.comparison.trial import Outcome, run_trial
from attnlab.training.signals import StoppedError, raising_signals
from attnlab.utils.extras import need

ATTEMPTS = 3
"""How often a trial is started whose worker dies."""

Endings = Generator[tuple[Trial, Outcome], None, None]
Run = Callable[[Trial, Path], Outcome]
Executor = Callable[[Sequence[Trial], Path], Endings]
"""Runs trials in a folder, and yields each with its outcome when it has ended."""


def executor(jobs: int, on: str) -> Executor:
    """The executor for ``jobs`` trials at a time, ``on`` this machine (``local``) or a cluster (``ray``).

    Raises:
        MissingExtraError: if ray is needed and not installed.
    """
    if on == "ray":
        need("ray", "--on ray")
        return lambda trials, folder: on_ray(trials, folder, jobs)
    if jobs == 1:
        return one_by_one
    return lambda trials, folder: in_processes(trials, folder, jobs)


def one_by_one(trials: Sequence[Trial], folder: Path) -> Endings:
    """Run the trials in this process; StoppedError after a signal."""
    with raising_signals():
        for trial in trials:
            outcome = run_trial(trial, folder)
            if outcome.how == "stopped":
                raise StoppedError(outcome.signal or signal.SIGINT)
            yield trial, outcome


@dataclass
class _Worker:
    process: Any
    connection: Connection
    trial: Trial | None = None


@dataclass
class _Pool:
    """Worker processes, each with a pipe; a process takes one trial at a time."""

    folder: Path
    run: Run
    workers: list[_Worker] = field(default_factory=list)

    def add(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        process = _context().Process(target=_work, args=(theirs, self.folder, self.run), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))

    def send(self, worker: _Worker, trial: Trial) -> None:
        worker.trial = trial
        with contextlib.suppress(OSError):  # it has died; `receive` reports that
            worker.connection.send(trial)

    def receive(self) -> list[tuple[Trial, Outcome | None]]:
        """The trials that have ended; None for one whose worker died, which is replaced."""
        busy = {worker.connection: worker for worker in self.workers if worker.trial is not None}
        ended: list[tuple[Trial, Outcome | None]] = []
        for connection in wait([*busy]):
            worker = busy[connection]  # type: ignore[index]
            trial, worker.trial = worker.trial, None
            assert trial is not None
            try:
                ended.append((trial, worker.connection.recv()))
            except (EOFError, OSError):
                ended.append((trial, None))
                worker.process.join()
                self.workers.remove(worker)
                self.add()
        return ended

    def close(self, *, terminate: bool) -> None:
        """End the workers; with ``terminate`` those at work save a checkpoint first."""
        for worker in self.workers:
            worker.connection.close()
            if terminate and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGTERM)
        for worker in self.workers:
            worker.process.join()


def in_processes(trials: Sequence[Trial], folder: Path, jobs: int, run: Run = run_trial) -> Endings:
    """Run the trials in ``jobs`` worker processes; StoppedError after a signal, when every worker has saved its run."""
    waiting, attempts, pool, finished = deque(trials), dict.fromkeys(map(id, trials), 0), _Pool(folder, run), False
    try:
        with raising_signals():
            for _ in range(min(jobs, len(trials))):
                pool.add()
            while waiting or any(worker.trial for worker in pool.workers):
                for worker in pool.workers:
                    if worker.trial is None and waiting:
                        attempts[id(waiting[0])] += 1
                        pool.send(worker, waiting.popleft())
                for trial, outcome in pool.receive():
                    if outcome is None and attempts[id(trial)] < ATTEMPTS:
                        waiting.appendleft(trial)
                    elif outcome is not None and outcome.how == "stopped":  # a signal that only the worker received
                        raise StoppedError(signal.SIGTERM)
                    else:
                        yield trial, outcome or _died()
        finished = True
    finally:
        pool.close(terminate=not finished)


def on_ray(trials: Sequence[Trial], folder: Path, jobs: int, run: Run = run_trial) -> Endings:
    """Run the trials on the Ray cluster in the variable RAY_ADDRESS, or on a local one of ``jobs`` workers.

    All nodes need this version of attnlab, and ``folder`` and the data on a shared file system.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    local = "RAY_ADDRESS" not in os.environ
    ray.init(
        num_cpus=jobs if local else None,
        include_dashboard=False if local else None,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:

        @ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)
        def start(trial: Trial, where: Path) -> Outcome:
            return run(trial, where)

        running = {start.remote(trial, folder.absolute()): trial for trial in trials}
        while running:
            ready, _ = ray.wait([*running], num_returns=1)
            for reference in ready:
                trial = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    outcome = _died()
                if outcome.how == "stopped":  # a signal that only the worker received
                    raise StoppedError(signal.SIGTERM)
                yield trial, outcome
    finally:
        ray.shutdown()


def _context() -> Any:
    """How processes start: from a server that has imported PyTorch but never used it, where there are such servers.

    A fork of this process would copy the threads of PyTorch in an unknown state.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attnlab.comparison.trial"])
    return context


def _died() -> Outcome:
    return Outcome("failed", f"its worker process died {ATTEMPTS} times, perhaps for lack of memory")


def _work(connection: Connection, folder: Path, run: Run) -> None:
    """Run the trials that arrive, until the pipe is closed or a signal stops one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then sends SIGTERM
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            outcome = run(connection.recv(), folder)
            connection.send(outcome)
            if outcome.how == "stopped":
                return


def _end_with_parent() -> None:
    """Stop this process when its parent has died, so that it saves a checkpoint and unlocks its run."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
