"""What a benchmark finds: a row each, with its target and its verdict, to print and to keep.

Every row has a ``what`` and an ``against``, and where it serves one of the goals (`benchmarks.goals`) the goal's key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.machine import Machine
from benchmarks.pairing import Ratio

REACHED, MISSED, NONE = "reached", "**missed**", ""


@dataclass(frozen=True)
class Speed:
    """Their time over ours, beside the control; ``floor`` is what the lower quartile shall reach."""

    kind: ClassVar[str] = "speed"
    what: str
    against: str
    ratio: Ratio
    control: Ratio
    target: float | None
    floor: float | None = None
    goal: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the numbers reach the target, as they are printed: to two digits; None without a target."""
        if self.target is None:
            return None
        good = round(self.ratio.median, 2) >= self.target
        return good and (self.floor is None or round(self.ratio.lower, 2) >= self.floor)

    @property
    def measured(self) -> str:
        return f"{self.ratio}"

    @property
    def wanted(self) -> str:
        if self.target is None:
            return ""
        return f"{self.target:g}×" + (f", lower quartile {self.floor:g}" if self.floor is not None else "")


@dataclass(frozen=True)
class Memory:
    """Their peak memory over ours, in bytes."""

    kind: ClassVar[str] = "memory"
    what: str
    against: str
    ours: int
    theirs: int
    target: float
    goal: str = ""

    @property
    def reached(self) -> bool | None:
        return self.theirs >= self.target * self.ours

    @property
    def measured(self) -> str:
        return f"1/{self.theirs / self.ours:.1f} ({megabytes(self.ours)} against {megabytes(self.theirs)})"

    @property
    def wanted(self) -> str:
        return f"1/{self.target:g}"


@dataclass(frozen=True)
class Growth:
    """How time (seconds) or peak memory (bytes) grows with the length: the exponent from 1,024 on."""

    kind: ClassVar[str] = "growth"
    what: str
    quantity: str
    lengths: list[int]
    values: list[float]
    limit: float | None = None
    goal: str = ""
    against: str = ""

    @property
    def steps(self) -> list[float]:
        """The exponent from each length to the next, from 1,024 on."""
        points = [(n, v) for n, v in zip(self.lengths, self.values, strict=True) if n >= min(1024, self.lengths[-2])]
        return [math.log(v2 / v1) / math.log(n2 / n1) for (n1, v1), (n2, v2) in pairwise(points)]

    @property
    def exponent(self) -> float:
        return sum(self.steps) / len(self.steps)

    @property
    def reached(self) -> bool | None:
        return None if self.limit is None else round(self.exponent, 2) <= self.limit

    @property
    def measured(self) -> str:
        last = self.values[-1]
        shown = f"{1000 * last:.0f} ms" if self.quantity == "time" else megabytes(last)
        steps = ", ".join(f"{step:.2f}" for step in self.steps)
        return f"N^{self.exponent:.2f} ({steps} by doubling); {shown} at {self.lengths[-1]:,}"

    @property
    def wanted(self) -> str:
        return "" if self.limit is None else f"N^{round(self.limit, 2):g} at most"


@dataclass(frozen=True)
class Finding:
    """Anything else: what was measured, in words, and the numbers behind it."""

    kind: ClassVar[str] = "finding"
    what: str
    measured: str
    wanted: str = ""
    reached: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)
    goal: str = ""
    against: str = ""


@dataclass(frozen=True)
class Absent:
    """What could not be measured here, and why."""

    kind: ClassVar[str] = "absent"
    what: str
    against: str
    measured: str
    goal: str = ""
    wanted: str = ""
    reached: bool | None = None


Row = Speed | Memory | Growth | Finding | Absent
KINDS: dict[str, Any] = {cls.kind: cls for cls in (Speed, Memory, Growth, Finding, Absent)}


@dataclass(frozen=True)
class Result:
    """A part's rows, and the machine that they were measured on."""

    part: str
    machine: Machine
    rows: list[Row]


def verdict(row: Row) -> str:
    """What a report says of a row."""
    if isinstance(row, Absent):
        return "**not measured**"
    return NONE if row.reached is None else REACHED if row.reached else MISSED


def megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB"


def write(result: Result, folder: Path) -> Path:
    """Keep a result as JSON; a number is kept to four digits, as many as mean something."""
    rows = [{"kind": row.kind, **asdict(row)} for row in result.rows]
    data = {"part": result.part, "machine": asdict(result.machine), "rows": rows}
    file = folder / f"{result.part}.json"
    file.write_text(json.dumps(_rounded(data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def read(file: Path) -> Result:
    """A result that was kept."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return Result(data["part"], Machine(**data["machine"]), [_row(row) for row in data["rows"]])


def read_all(folder: Path) -> dict[str, Result]:
    """Every result in a folder, by its part."""
    found: Iterable[Result] = map(read, sorted(folder.glob("*.json")))
    return {result.part: result for result in found}


def _row(data: dict[str, Any]) -> Row:
    values = {name: Ratio(**value) if name in ("ratio", "control") else value for name, value in data.items()}
    return KINDS[values.pop("kind")](**values)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
