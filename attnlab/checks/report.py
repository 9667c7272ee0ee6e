"""The report of a run of the suite: one row per check."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Row:
    """The outcome of one check.

    ``measured`` is None where nothing was measured: the check is not applicable, or the layer raised. ``detail``
    describes where the value was measured, what was raised, or why the check is not applicable.
    """

    check: str
    outcome: Outcome
    measured: float | None = None
    limit: float | None = None
    detail: str = ""

    @property
    def value(self) -> str:
        """The measured value and its limit as text, empty where nothing was measured."""
        return "" if self.measured is None else f"{self.measured:.2g} (at most {self.limit:.2g})"


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks of one layer; printed, it shows one line per check.

    ``left_out`` counts the checks that were not run because of ``fast``, ``only`` or ``skip``.
    """

    name: str
    rows: tuple[Row, ...]
    left_out: int = 0

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of the failed checks."""
        return tuple(row for row in self.rows if row.outcome == "fail")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def summary(self) -> str:
        """The number of checks per outcome, in one line."""
        count = Counter(row.outcome for row in self.rows)
        skipped = f", {self.left_out} skipped" if self.left_out else ""
        outcomes = ", ".join(f"{count[outcome]} {outcome}" for outcome in ("pass", "fail", "not applicable"))
        return f"{self.name}: {outcomes}{skipped}"

    def __getitem__(self, check: str) -> Row:
        """The row of a check."""
        return next(row for row in self.rows if row.check == check)

    def raise_for_failures(self) -> None:
        """Raise an AssertionError that lists the failed checks, if there are any."""
        if self.failed:
            applicable = sum(row.outcome != "not applicable" for row in self.rows)
            lines = "\n  ".join(self.explain("fail"))
            raise AssertionError(f"{self.name} fails {len(self.failed)} of {applicable} checks:\n  {lines}")

    def explain(self, outcome: Outcome) -> list[str]:
        """One line per check with this outcome; checks with the same explanation share a line."""
        lines: dict[str, list[str]] = {}
        for row in self.rows:
            if row.outcome == outcome:
                text = ": ".join(part for part in (row.value, row.detail) if part)
                lines.setdefault(text, []).append(row.check)
        return [f"{', '.join(names)}: {text}" for text, names in lines.items()]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; values that are not finite become strings."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["measured"] is not None and not math.isfinite(row["measured"]):
                row["measured"] = str(row["measured"])
        return {"name": self.name, "passed": self.passed, "left_out": self.left_out, "checks": rows}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [self.summary]
        for row in self.rows:
            detail = "" if row.outcome == "pass" else row.detail
            lines.append(f"{row.check:<39}  {row.outcome:<14}  {row.value}  {detail}".rstrip())
        return "\n".join(lines)
