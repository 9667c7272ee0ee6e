"""The rows of a benchmark with their targets, and the files that record them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from attnlab.bench.machine import Machine
from attnlab.bench.timing import Ratio, TimingConfig, Workload, time_interleaved

MET, MISSED, NOT_MEASURED = "met", "**missed**", "**not measured**"


@dataclass(frozen=True)
class Row:
    """One row of a report.

    Args:
        case: what was measured.
        baseline: what it is compared with.
        goal: the key of the goal in `benchmarks.goals` that the row belongs to, empty for none.
    """

    case: str
    baseline: str = ""
    goal: str = field(default="", kw_only=True)

    @property
    def measured(self) -> str:
        """The measured value as text."""
        raise NotImplementedError

    @property
    def required(self) -> str:
        """The target as text, empty without one."""
        return ""

    @property
    def met(self) -> bool | None:
        """Whether the value, rounded as it is printed, meets the target; None without a target."""
        return None

    @property
    def verdict(self) -> str:
        return {None: "", True: MET, False: MISSED}[self.met]

    def markdown(self) -> str:
        cells = [self.case, self.baseline, self.measured, str(getattr(self, "control", ""))]
        return f"| {' | '.join([*cells, self.required, self.verdict])} |"


@dataclass(frozen=True, kw_only=True)
class Speed(Row):
    """Their time over ours, and the control; ``floor`` is the least lower quartile that meets the target."""

    ratio: Ratio
    control: Ratio
    target: float | None = None
    floor: float | None = None

    @property
    def measured(self) -> str:
        return str(self.ratio)

    @property
    def required(self) -> str:
        if self.target is None:
            return ""
        return f"{self.target:g}×" + (f", lower quartile {self.floor:g}" if self.floor is not None else "")

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return round(self.ratio.median, 2) >= self.target and round(self.ratio.lower, 2) >= (self.floor or 0)


def speed_row(
    timing: TimingConfig, case: str, baseline: str, ours: Workload, theirs: Workload, target: float, goal: str = ""
) -> Speed:
    """Time one workload and one baseline."""
    ratios, control = time_interleaved(ours, {baseline: theirs}, timing)
    return Speed(case, baseline, ratio=ratios[baseline], control=control, target=target, goal=goal)


@dataclass(frozen=True, kw_only=True)
class Memory(Row):
    """Peak memory in bytes, ours and theirs; ``target`` is theirs over ours."""

    ours: int
    theirs: int
    target: float

    @property
    def measured(self) -> str:
        return f"1/{self.theirs / self.ours:.1f} ({megabytes(self.ours)}, {megabytes(self.theirs)})"

    @property
    def required(self) -> str:
        return f"1/{self.target:g}"

    @property
    def met(self) -> bool | None:
        return self.theirs >= self.target * self.ours


@dataclass(frozen=True, kw_only=True)
class Growth(Row):
    """Time (seconds) or peak memory (bytes) at several lengths; ``limit`` is the largest exponent from 1,024 on."""

    quantity: str
    lengths: list[int]
    values: list[float]
    limit: float | None = None

    @property
    def steps(self) -> list[float]:
        """The exponent from each length to the next, from 1,024 on."""
        points = [(n, v) for n, v in zip(self.lengths, self.values, strict=True) if n >= min(1024, self.lengths[-2])]
        return [math.log(v2 / v1) / math.log(n2 / n1) for (n1, v1), (n2, v2) in pairwise(points)]

    @property
    def exponent(self) -> float:
        """The mean of the steps."""
        return sum(self.steps) / len(self.steps)

    @property
    def measured(self) -> str:
        last = self.values[-1]
        value = f"{1000 * last:.0f} ms" if self.quantity == "time" else megabytes(last)
        steps = ", ".join(f"{step:.2f}" for step in self.steps)
        return f"{self.quantity} N^{self.exponent:.2f} ({steps} per doubling); {value} at {self.lengths[-1]:,}"

    @property
    def required(self) -> str:
        return "" if self.limit is None else f"at most N^{round(self.limit, 2):g}"

    @property
    def met(self) -> bool | None:
        return None if self.limit is None else round(self.exponent, 2) <= self.limit


@dataclass(frozen=True, kw_only=True)
class Note(Row):
    """A result as text, with the values behind it."""

    text: str
    requirement: str = ""
    is_met: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)

    measured = property(lambda self: self.text)
    required = property(lambda self: self.requirement)
    met = property(lambda self: self.is_met)


@dataclass(frozen=True, kw_only=True)
class NotMeasured(Note):
    """A row that could not be measured; ``text`` is the reason."""

    verdict = property(lambda self: NOT_MEASURED)


KINDS = {"speed": Speed, "memory": Memory, "growth": Growth, "note": Note, "not measured": NotMeasured}


@dataclass(frozen=True)
class Result:
    """The rows of one part, and the machine that they were measured on."""

    part: str
    machine: Machine
    rows: list[Row]


def megabytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MB" if size >= 2**20 else f"{size / 2**10:,.0f} kB"


def write(result: Result, folder: Path) -> Path:
    """Write a result as JSON, floats with four significant digits."""
    names = {cls: kind for kind, cls in KINDS.items()}
    rows = [{"kind": names[type(row)], **asdict(row)} for row in result.rows]
    data = {"part": result.part, "machine": asdict(result.machine), "rows": rows}
    file = folder / f"{result.part}.json"
    file.write_text(json.dumps(_rounded(data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def read(file: Path) -> Result:
    data = json.loads(file.read_text(encoding="utf-8"))
    return Result(data["part"], Machine(**data["machine"]), [_row(row) for row in data["rows"]])


def read_all(folder: Path) -> dict[str, Result]:
    """All results in a folder, by part."""
    return {file.stem: read(file) for file in sorted(folder.glob("*.json"))}


def _row(values: dict[str, Any]) -> Row:
    cls = KINDS[values.pop("kind")]
    return cls(**values | {name: Ratio(**values[name]) for name in ("ratio", "control") if name in values})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
