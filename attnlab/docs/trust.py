"""What is proved of each mechanism: the promises that it kept, and how far it is from implementations by others.

Found by ``attnlab check --record`` and ``python -m pytest tests/models --record``, and kept beside the mechanism in
``trust.json``; docs/trust.md and the line in each lesson are made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnlab.utils.errors import UserError

FILE = "trust.json"


@dataclass(frozen=True)
class Parity:
    """How far a mechanism is from an implementation that we did not write, outputs and gradients, at worst.

    Args:
        oracle: what it was held against.
        package: where that is from.
        version: of the package.
        float32: the largest difference in single precision; None where it was not asked.
        float64: in double precision; no nearer than single where the oracle computes a part in that, whatever it is
            given.
    """

    oracle: str
    package: str
    version: str
    float32: float | None
    float64: float | None


@dataclass(frozen=True)
class Trust:
    """What was found of one mechanism: ``pass`` or ``not claimed`` for every promise, and every oracle."""

    promises: Mapping[str, str] = field(default_factory=dict)
    parity: tuple[Parity, ...] = ()

    @property
    def kept(self) -> int:
        """How many promises it keeps."""
        return sum(outcome == "pass" for outcome in self.promises.values())

    @property
    def nearest(self) -> Parity | None:
        """The oracle that it is nearest to, one by others before brute force over PyTorch's attention."""
        found = [p for p in self.parity if p.float64 is not None]
        return min(found, key=lambda p: (p.oracle.startswith("scaled_dot_product"), p.float64 or 0.0), default=None)


def read(folder: Path) -> Trust:
    """What was recorded of the mechanism in ``folder``; nothing where nothing was.

    Raises:
        UserError: for a file that cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return Trust()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Trust(found["promises"], tuple(Parity(**row) for row in found["parity"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); record it anew with: attnlab check {folder.name} --record"
        ) from None


def record(folder: Path, **found: Any) -> Path:
    """Put ``promises`` or ``parity`` in the place of what was recorded."""
    kept = asdict(read(folder))
    kept.update({name: [asdict(row) for row in value] if name == "parity" else value for name, value in found.items()})
    file = folder / FILE
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def badge(trust: Trust, claimed_not: int) -> str:
    """The line of a lesson: how many promises are kept, and how near it is to whom."""
    if not trust.promises:
        return ""
    parts = [f"keeps each of the {trust.kept} promises that it makes ({claimed_not} it does not make)"]
    if (near := trust.nearest) is not None:
        parts.append(f"{error(near.float64)} from {near.oracle} of {near.package} {near.version} in float64")
    return f"**Proved**: {'; '.join(parts)}. [All promises and oracles](../../docs/trust.md)."


def page(names: Mapping[str, Path], growth: Mapping[str, tuple[str, str]]) -> str:
    """The tables of docs/trust.md, of all of which something was recorded.

    Args:
        names: the mechanisms and their folders.
        growth: the measured exponents of time and peak memory, as text, of those that were measured.
    """
    found = {name: read(folder) for name, folder in names.items() if read(folder) != Trust()}
    head = ("", "mechanism", "kept", "not claimed", "float64", "float32", "held against", "time", "peak memory")
    lines = [head, ("---",) * len(head)]
    for number, (name, trust) in enumerate(found.items(), 1):
        own = (
            f"{number}",
            f"[{name}](../models/{name}/README.md)",
            f"{trust.kept}",
            f"{len(trust.promises) - trust.kept}",
        )
        grown = growth.get(name, ("–", "–"))
        oracles = trust.parity or (Parity("the formula in loops alone", "", "", None, None),)
        for place, oracle in enumerate(oracles):
            against = f"{oracle.oracle}, {oracle.package} {oracle.version}" if oracle.package else oracle.oracle
            errors = error(oracle.float64), error(oracle.float32)
            lines.append((*(own if place == 0 else ("",) * 4), *errors, against, *(grown if place == 0 else ("", ""))))
    marks = [("promise", *(f"{number}" for number in range(1, len(found) + 1))), ("---",) * (len(found) + 1)]
    promises = dict.fromkeys(promise for trust in found.values() for promise in trust.promises)
    marks += [(name, *(MARKS.get(trust.promises.get(name, ""), "?") for trust in found.values())) for name in promises]
    return "\n".join(map(_row, lines)) + "\n\n" + "\n".join(map(_row, marks))


MARKS = {"pass": "✓", "not claimed": "–"}


def error(value: float | None) -> str:
    """A measured difference, short."""
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
