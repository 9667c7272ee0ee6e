"""The machine, its load, the versions and the commit that a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

import attnlab
from attnlab.catalog import registry


@dataclass
class Machine:
    """The machine, its load and the installed versions; ``commit`` and ``modified`` are those of a checkout."""

    date: str
    processor: str
    cpus: int
    threads: int
    cores: list[int]
    versions: dict[str, str]
    load_before: float | None
    load_after: float | None = None
    minutes: float = 0.0
    commit: str | None = None
    modified: bool | None = None
    attnlab: str = ""

    @classmethod
    def current(cls, cores: Iterable[int] = (), packages: Iterable[str] = ()) -> Machine:
        """Return the facts before a measurement.

        Args:
            cores: the cores that the process is pinned to (see `pinned`).
            packages: names of packages whose versions are included.
        """
        versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
        versions |= {name: _version(name) for name in packages}
        commit, modified = commit_of(registry.checkout())
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            processor=_processor(),
            cpus=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            cores=list(cores),
            versions=versions,
            load_before=load_average(),
            commit=commit,
            modified=modified,
            attnlab=attnlab.__version__,
        )

    @property
    def run(self) -> str:
        """The date, the load and the duration of the measurement."""
        before, after = ("unknown" if load is None else f"{load:.2f}" for load in (self.load_before, self.load_after))
        return f"{self.date}, {self.minutes:.1f} minutes, load {before} before and {after} after"

    @property
    def environment(self) -> str:
        """The processor, the threads and the versions."""
        pinned = f"pinned to core {', '.join(map(str, self.cores))}" if self.cores else "not pinned to a core"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor}, {self.threads} thread(s) {pinned} of {self.cpus}; {versions}"

    @property
    def source(self) -> str:
        """The version of attnlab and, in a checkout, the commit."""
        if self.commit is None:
            return f"attnlab {self.attnlab}"
        return f"attnlab {self.attnlab}, commit {self.commit[:12]}{' with changes' if self.modified else ''}"


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Use this number of threads on the same number of cores, inside the context.

    Yields the cores, an empty list where pinning is impossible.
    """
    before = torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    cores = sorted(allowed)[-threads:]
    torch.set_num_threads(threads)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        torch.set_num_threads(before)
        if cores:
            os.sched_setaffinity(0, allowed)


def load_average() -> float | None:
    """The load average of the last minute, None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def commit_of(folder: Path | None) -> tuple[str | None, bool | None]:
    """The commit that is checked out in ``folder`` and whether files were changed since; None where there is none."""
    if folder is None:
        return None, None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or this is no repository
        return None, None
    return commit, bool(changes)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    processor = f"{name or platform.processor()} ({platform.machine()})"
    return f"{processor}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else processor
