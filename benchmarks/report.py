"""Measure one part, print its rows, and record them as Markdown and JSON."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import torch

from attnlab.bench.machine import Machine, load_average
from attnlab.bench.peers import PACKAGES
from attnlab.bench.timing import TimingConfig
from benchmarks import parts, results
from benchmarks.results import NotMeasured, Result, Row, Speed

RESULTS = Path(__file__).parent / "results"

HEAD = ["| case | baseline | measured | control | target | |", "|---|---|---|---|---|---|"]
HOW_TO_READ = (
    "Above 1, ours is faster. A speed is the median (quartiles) of the ratios of all rounds; the control is the ratio "
    "of two runs of ours."
)


class Part(Protocol):
    """The contents of a module in `benchmarks.parts`."""

    TITLE: str
    ABOUT: str
    rows: Callable[[TimingConfig], Iterator[Row]]


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(parts.__path__))


def load(name: str) -> Part:
    return cast(Part, importlib.import_module(f"benchmarks.parts.{name}"))


def missing(part: Part) -> list[str]:
    """The requirements of a part that this machine lacks, one line each."""
    lines: list[str] = getattr(part, "missing", list)()
    return lines


def can_run(part: Part) -> bool:
    """Whether the device of a part is available."""
    return getattr(part, "DEVICE", "cpu") == "cpu" or torch.cuda.is_available()


def measure(name: str, part: Part, timing: TimingConfig, cores: list[int], log: Callable[[str], None]) -> Result:
    """Measure a part, and log each line of its report as soon as it is known."""
    torch.manual_seed(0)
    machine, start = Machine.current(cores, PACKAGES), time.perf_counter()
    result = Result(name, machine, [])
    for line in opening(part):
        log(line)
    for row in part.rows(timing):
        result.rows.append(row)
        log(row.markdown())
    machine.load_after, machine.minutes = load_average(), (time.perf_counter() - start) / 60
    for line in closing(result):
        log(line)
    return result


def record(result: Result, part: Part, folder: Path = RESULTS) -> None:
    """Write the report of a part as JSON and Markdown; both have the same rounded values."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = results.read(results.write(result, folder))
    (folder / f"{result.part}.md").write_text(markdown(rounded, part), encoding="utf-8")


def markdown(result: Result, part: Part) -> str:
    return "\n".join([*opening(part), *(row.markdown() for row in result.rows), *closing(result)]) + "\n"


def opening(part: Part) -> list[str]:
    return [f"# {part.TITLE}", "", part.ABOUT, "", *HEAD]


def closing(result: Result) -> list[str]:
    lines = []
    if missing_rows := sum(isinstance(row, NotMeasured) for row in result.rows):
        lines += ["", f"{missing_rows} row(s) could not be measured on this machine."]
    if any(isinstance(row, Speed) for row in result.rows):
        lines += ["", HOW_TO_READ]
    machine = result.machine
    return [*lines, "", f"Measured with `python -m benchmarks {result.part}`: {machine.run}. {machine.environment}."]
