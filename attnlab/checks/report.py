"""What was found: a row a promise."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["pass", "fail", "not claimed"]


@dataclass(frozen=True)
class Row:
    """One promise: kept, broken, or not claimed.

    ``measured`` is None where nothing was: the promise is not claimed, or the layer raised. ``detail`` says where
    the number was measured, what was raised, or why the promise is not claimed.
    """

    promise: str
    outcome: Outcome
    measured: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What a layer kept of what it promises; printed, it shows every row.

    ``left_out`` counts the promises that were not looked at, as ``fast``, ``only`` and ``skip`` had it.
    """

    name: str
    rows: tuple[Row, ...]
    left_out: int = 0

    @property
    def failed(self) -> tuple[Row, ...]:
        """The broken promises."""
        return tuple(row for row in self.rows if row.outcome == "fail")

    @property
    def summary(self) -> str:
        """How many were kept, broken and not claimed."""
        count = Counter(row.outcome for row in self.rows)
        more = f", {self.left_out} left out" if self.left_out else ""
        return f"{self.name}: {count['pass']} pass, {count['fail']} fail, {count['not claimed']} not claimed{more}"

    @property
    def passed(self) -> bool:
        """Whether no promise is broken."""
        return not self.failed

    def __getitem__(self, promise: str) -> Row:
        """The row of a promise."""
        return next(row for row in self.rows if row.promise == promise)

    def raise_for_failures(self) -> None:
        """Raise an AssertionError that lists the broken promises, if there are any."""
        if self.failed:
            held = sum(row.outcome != "not claimed" for row in self.rows)
            lines = "\n  ".join(self.explain("fail"))
            raise AssertionError(f"{self.name} breaks {len(self.failed)} of {held} promises:\n  {lines}")

    def explain(self, outcome: Outcome) -> list[str]:
        """A line a promise with this outcome; those that have the same to say share one."""
        lines: dict[str, list[str]] = {}
        for row in self.rows:
            if row.outcome == outcome:
                measured = "" if row.measured is None else f"{number(row.measured)}, at most {number(row.limit)}: "
                lines.setdefault(f"{measured}{row.detail}", []).append(row.promise)
        return [f"{'; '.join(names)}: {said}" for said, names in lines.items()]

    def to_json(self) -> str:
        """The report as JSON; a number that is not finite is written as a string."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        rows = [
            {
                "promise": row.promise,
                "outcome": row.outcome,
                "measured": _plain(row.measured),
                "limit": row.limit,
                "detail": row.detail,
            }
            for row in self.rows
        ]
        return {"name": self.name, "passed": self.passed, "left_out": self.left_out, "promises": rows}

    def __str__(self) -> str:
        lines = [self.summary]
        for row in self.rows:
            said = "" if row.outcome == "pass" else row.detail
            line = f"{row.promise:<36} {row.outcome:<11} {number(row.measured):>8} {number(row.limit):>6}  {said}"
            lines.append(line.rstrip())
        return "\n".join(lines)


def number(value: float | None) -> str:
    """A measured number, short."""
    return "" if value is None else f"{value:.2g}"


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
