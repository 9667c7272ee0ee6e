"""Peak memory in a process of its own, and a limit that lets allocations fail before the system ends the process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from attnlab.bench.workloads import Phase, workload
from attnlab.checks import allocations
from attnlab.training.hardware import autocast, is_out_of_memory
from attnlab.training.settings import Hardware

MARGIN = 0.9
"""The part of the available memory that may be allocated."""

CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""The folders of versions 2 and 1 of Linux control groups, and their files with the limit and the usage."""


class OutOfMemoryError(Exception):
    """A workload needs more memory than there is; the message is one line."""


class Peak(NamedTuple):
    """Bytes that a workload allocates at most, in addition to the model and its input, and those of its caches.

    In decoding, ``allocated`` includes the caches, which are held between the calls.
    """

    allocated: int
    caches: int


@dataclass(frozen=True)
class Case:
    """One model in one phase; see `attnlab.bench.workloads.workload`."""

    model: nn.Module
    x: Tensor
    phase: Phase
    hardware: Hardware

    def peak(self) -> Peak:
        """Measure the peak of the second call: the first allocates what is kept, such as gradients."""
        device = self.x.device
        with limited(device):
            work = workload(self.model, self.x, self.phase, partial(autocast, self.hardware, device))
            work()
            return Peak(allocations.peak(work, device) + work.cache_bytes, work.cache_bytes)


class MemoryProcess:
    """A process that measures cases, one after the other; it starts with the first, and again after one ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def peak(self, case: Case) -> Peak:
        """Measure a case.

        Raises:
            OutOfMemoryError: if memory cannot be allocated, or the process was ended.
            Exception: what the workload raises.
        """
        data = pickle.dumps((torch.get_num_threads(), case))
        process = self._process = self._process or _start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(data)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            with contextlib.suppress(OSError):
                process.stdin.close()  # ends a process that is still there
            code = process.wait()
            self.close()
            if code not in (-signal.SIGKILL, -signal.SIGABRT):
                raise RuntimeError(f"the process that measures memory ended with code {code}") from None
            raise OutOfMemoryError("needs more memory than there is: the system ended the process") from None
        if isinstance(answer, Exception):
            raise answer
        peak: Peak = answer
        return peak

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not sent is lost
                        stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _start() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", "from attnlab.bench.memory import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends this process
    )


def serve() -> None:
    """Answer each case from standard input with its peak, or with the error that it raises."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a layer may print
    while True:
        try:
            threads, case = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        torch.set_num_threads(threads)
        answer: Peak | Exception
        try:
            answer = case.peak()
        except Exception as error:
            answer = plain_error(error)
        pickle.dump(answer, answers)
        answers.flush()


def plain_error(error: Exception) -> Exception:
    """The error with its message in one line, as an `OutOfMemoryError` where it is one; it can be pickled."""
    if isinstance(error, OutOfMemoryError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(f"needs more memory than there is ({available() / 2**30:.1f} GiB available)")
    return error


def available() -> int:
    """The bytes of memory that can still be allocated, inside the limits of a container."""
    free = [2**63]
    with contextlib.suppress(OSError, ValueError, KeyError):
        free.append(1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"])
    for folder, limit, used in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # the limit may be the word max
            cached = _numbers(folder / "memory.stat")["inactive_file"]  # is given back
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()) + cached)
    return max(0, min(free))


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line by its first word."""
    lines = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines}


@contextlib.contextmanager
def limited(device: torch.device) -> Iterator[None]:
    """Limit the memory of this process to what is available; an allocation above it raises.

    Without an effect on other devices than a CPU, and where the system has no such limit.
    """
    try:
        import resource

        kind, page = resource.RLIMIT_DATA, resource.getpagesize()
        used = page * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except (ImportError, OSError):  # not Linux
        yield
        return
    soft, hard = before = resource.getrlimit(kind)
    if device.type != "cpu" or soft != resource.RLIM_INFINITY:
        yield
        return
    resource.setrlimit(kind, (used + int(MARGIN * available()), hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
