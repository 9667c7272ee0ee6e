"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.peers import PACKAGES


@dataclass
class Machine:
    """The machine, its load and the installed versions."""

    date: str
    processor: str
    cpus: int
    threads: int
    cores: list[int]
    versions: dict[str, str]
    load_before: float | None
    load_after: float | None = None
    minutes: float = 0.0

    @classmethod
    def current(cls, cores: list[int]) -> Machine:
        versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
        versions |= {name: _version(name) for name in PACKAGES}
        date, cpus = f"{datetime.now(UTC):%Y-%m-%d}", os.cpu_count() or 1
        return cls(date, _processor(), cpus, torch.get_num_threads(), cores, versions, load_average())

    @property
    def run(self) -> str:
        """The date, the load and the duration of the measurement."""
        before, after = ("unknown" if load is None else f"{load:.2f}" for load in (self.load_before, self.load_after))
        return f"{self.date}, {self.minutes:.1f} minutes, load {before} before and {after} after"

    @property
    def environment(self) -> str:
        pinned = f"pinned to core {', '.join(map(str, self.cores))}" if self.cores else "not pinned to a core"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor}, {self.threads} thread(s) {pinned} of {self.cpus}; {versions}"


def pin(threads: int) -> list[int]:
    """Use this number of threads on the same number of cores; returns the cores, none where pinning is impossible."""
    torch.set_num_threads(threads)
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cores)
    return cores


def load_average() -> float | None:
    """The load average of the last minute, None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


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
