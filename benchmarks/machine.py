"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.peers import PEERS


@dataclass
class Machine:
    """The machine, the versions, and how busy it was."""

    date: str
    processor: str
    cpus: int
    threads: int
    cores: list[int]
    versions: dict[str, str]
    load_before: float | None
    load_after: float | None = None
    minutes: float = 0.0

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        pinned = f"pinned to core {', '.join(map(str, self.cores))}" if self.cores else "not pinned to a core"
        before, after = ("unknown" if load is None else f"{load:.2f}" for load in (self.load_before, self.load_after))
        return (
            f"{self.date}: {self.processor}, {self.threads} thread(s) {pinned} of {self.cpus}; "
            f"load {before} before and {after} after {self.minutes:.1f} minutes; {versions}"
        )


def pin(threads: int) -> list[int]:
    """Compute with so many threads, on as many cores that are always the same; none where the system cannot pin."""
    torch.set_num_threads(threads)
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cores)
    return cores


def look(cores: list[int]) -> Machine:
    """The machine as it is now."""
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
    for name in PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return Machine(
        f"{datetime.now(UTC):%Y-%m-%d}",
        _processor(),
        os.cpu_count() or 1,
        torch.get_num_threads(),
        cores,
        versions,
        load(),
    )


def load() -> float | None:
    """How many processes wanted to run in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    processor = f"{name or platform.processor()} ({platform.machine()})"
    return f"{processor}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else processor
