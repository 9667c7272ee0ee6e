"""A part's report: printed as it grows, and kept as Markdown and as JSON."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import torch

from benchmarks import machine, parts, results
from benchmarks.pairing import Pace
from benchmarks.results import Absent, Result, Row, Speed

RESULTS = Path(__file__).parent / "results"

HEAD = ["| what | against | measured | control | at least | |", "|---|---|---|---|---|---|"]


class Part(Protocol):
    """What a module in `benchmarks.parts` has."""

    TITLE: str
    ABOUT: str
    rows: Callable[[Pace], Iterator[Row]]


def names() -> list[str]:
    """Every part there is."""
    return sorted(module.name for module in pkgutil.iter_modules(parts.__path__))


def load(name: str) -> Part:
    """A part by its name."""
    return cast(Part, importlib.import_module(f"benchmarks.parts.{name}"))


def missing(part: Part) -> list[str]:
    """What a part needs and this machine lacks, one line each."""
    lines: list[str] = getattr(part, "missing", list)()
    return lines


def can_run(part: Part) -> bool:
    """Whether the device that a part needs is there."""
    return getattr(part, "DEVICE", "cpu") == "cpu" or torch.cuda.is_available()


def measure(name: str, part: Part, pace: Pace, cores: list[int], say: Callable[[str], None]) -> Result:
    """Measure a part, and say every line of its report as soon as it is known."""
    torch.manual_seed(0)
    for line in opening(part):
        say(line)
    about, began = machine.look(cores), time.perf_counter()
    result = Result(name, about, [])
    for row in part.rows(pace):
        result.rows.append(row)
        say(line_of(row))
    about.load_after, about.minutes = machine.load(), (time.perf_counter() - began) / 60
    for line in closing(result):
        say(line)
    return result


def keep(result: Result, part: Part, folder: Path = RESULTS) -> None:
    """Put a part's report in the place of its last one."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = results.read(results.write(result, folder))  # the page is made of what was kept, and shall say the same
    (folder / f"{result.part}.md").write_text(markdown(kept, part), encoding="utf-8")


def markdown(result: Result, part: Part) -> str:
    """The whole report."""
    return "\n".join([*opening(part), *map(line_of, result.rows), *closing(result)]) + "\n"


def opening(part: Part) -> list[str]:
    return [f"# {part.TITLE}", "", part.ABOUT, "", *HEAD]


def line_of(row: Row) -> str:
    """A row of the table; speed is their time over ours, with quartiles, beside our time over our own."""
    control = str(row.control) if isinstance(row, Speed) else ""
    measured = f"{row.quantity} {row.measured}" if isinstance(row, results.Growth) else row.measured
    cells = [row.what, row.against, measured, control, row.wanted, results.verdict(row)]
    return f"| {' | '.join(cells)} |"


def closing(result: Result) -> list[str]:
    lines = ["", f"Measured with `python -m benchmarks {result.part}`. {result.machine}."]
    if any(isinstance(row, Speed) for row in result.rows):
        how = (
            "Above 1 we are faster. A speed is the median (quartiles) of the ratios of all rounds, the control our own "
            "time over our own."
        )
        lines[1:1] = [how, ""]
    if absent := sum(isinstance(row, Absent) for row in result.rows):
        lines[1:1] = [f"{absent} row(s) could not be measured here.", ""]
    return lines
