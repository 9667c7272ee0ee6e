"""The recorded evidence for each mechanism: the outcomes of the checks and the differences from other implementations.

``attnlab check --record`` and ``python -m pytest tests/models --record`` write it to ``trust.json`` beside the
mechanism; docs/trust.md and a line in each lesson are generated from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnlab.utils.errors import UserError
from attnlab.utils.markdown import table

FILE = "trust.json"
MARKS = {"pass": "✓", "not applicable": "–"}


@dataclass(frozen=True)
class Parity:
    """The largest difference, in outputs and gradients, from an implementation in another library.

    Args:
        oracle: the implementation.
        package: the library.
        version: the version of the library.
        float32: the largest difference in single precision; None where it was not measured.
        float64: the largest difference in double precision; not smaller than ``float32`` where the implementation
            computes a part in single precision for every input.
    """

    oracle: str
    package: str
    version: str
    float32: float | None
    float64: float | None


@dataclass(frozen=True)
class Trust:
    """The outcome of every check (``pass`` or ``not applicable``), and one `Parity` per implementation."""

    checks: Mapping[str, str] = field(default_factory=dict)
    parity: tuple[Parity, ...] = ()

    @property
    def passed(self) -> int:
        """The number of checks that pass."""
        return sum(outcome == "pass" for outcome in self.checks.values())

    @property
    def nearest(self) -> Parity | None:
        """The implementation with the smallest difference; another library comes before PyTorch's attention."""
        measured = [p for p in self.parity if p.float64 is not None]
        return min(measured, key=lambda p: (p.oracle.startswith("scaled_dot_product"), p.float64 or 0.0), default=None)


def read(folder: Path) -> Trust:
    """The evidence recorded for the mechanism in ``folder``; empty if there is none.

    Raises:
        UserError: the file cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return Trust()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Trust(content["checks"], tuple(Parity(**row) for row in content["parity"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); record it again with: attnlab check {folder.name} --record"
        ) from None


def record(folder: Path, **evidence: Any) -> Path:
    """Replace the recorded ``checks`` or ``parity``; the other part stays."""
    content = asdict(read(folder))
    for name, value in evidence.items():
        content[name] = [asdict(row) for row in value] if name == "parity" else value
    file = folder / FILE
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def badge(trust: Trust) -> str:
    """The line in a lesson: the number of checks that pass, and the nearest implementation."""
    if not trust.checks:
        return ""
    parts = [f"passes all {trust.passed} applicable checks ({len(trust.checks) - trust.passed} are not applicable)"]
    if (near := trust.nearest) is not None:
        parts.append(f"differs by {error(near.float64)} from {near.oracle} ({near.package} {near.version}) in float64")
    return f"**Verified**: {'; '.join(parts)}. [All checks and implementations](../../docs/trust.md)."


def page(names: Mapping[str, Path], growth: Mapping[str, tuple[str, str]]) -> str:
    """The tables of docs/trust.md, for all mechanisms with recorded evidence.

    Args:
        names: the mechanisms and their folders.
        growth: the measured exponents of time and peak memory, as text, where they were measured.
    """
    recorded = {name: trust for name, folder in names.items() if (trust := read(folder)) != Trust()}
    head = ("", "mechanism", "pass", "not applicable", "float64", "float32", "compared with", "time", "peak memory")
    rows = []
    for number, (name, trust) in enumerate(recorded.items(), 1):
        link, others = f"[{name}](../models/{name}/README.md)", len(trust.checks) - trust.passed
        first = (f"{number}", link, f"{trust.passed}", f"{others}")
        last = growth.get(name, ("–", "–"))
        for parity in trust.parity or (Parity("the reference implementation only", "", "", None, None),):
            oracle = f"{parity.oracle}, {parity.package} {parity.version}" if parity.package else parity.oracle
            rows.append((*first, error(parity.float64), error(parity.float32), oracle, *last))
            first, last = ("",) * 4, ("", "")
    checks = dict.fromkeys(check for trust in recorded.values() for check in trust.checks)
    marks = [(name, *(MARKS.get(trust.checks.get(name, ""), "?") for trust in recorded.values())) for name in checks]
    return f"{table(head, rows)}\n\n{table(('check', *map(str, range(1, len(recorded) + 1))), marks)}"


def error(value: float | None) -> str:
    """A measured difference, with one digit."""
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")
