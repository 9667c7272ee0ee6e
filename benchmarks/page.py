"""docs/performance.md: the goals and what was reached, made of the results alone, so that the two cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import picture, report, results
from benchmarks.goals import GOALS, Goal
from benchmarks.results import MISSED, REACHED, Absent, Finding, Growth, Memory, Result, Row, Speed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "pictures" / "performance.png"
NOTES = Path(__file__).parent / "notes.md"
"""Why a goal was missed, by hand: a heading a goal's key."""

OPENING = """\
# Speed and memory

What the layers and engines of attnlab take, beside what others take for the same. This page is made of
[the results](../benchmarks/README.md) that were measured last; do not edit it, measure:

```sh
make bench
```

Both sides compute the same from the same weights, and their outputs are compared first. They run in turn, in one
process on one core, by the time that the process computes; a speed is the median (lower–upper quartile) of their time
over ours, round by round. A goal counts as reached when every one of its rows does; a parity goal asks for its lower
quartile too. Beside each row of the results stands a control, our own time over our own, which shows what the noise
alone makes.
"""


def write() -> list[Path]:
    """Make the page and its picture from the results there are."""
    found = results.read_all(report.RESULTS)
    PAGE.write_text(page(found, NOTES.read_text(encoding="utf-8")), encoding="utf-8")
    if "length" not in found:
        return [PAGE]
    return [PAGE, picture.draw(found["length"], PICTURE)]


def page(found: dict[str, Result], notes: str) -> str:
    """The whole page."""
    lines = [OPENING, "| against | case | at least | measured | | part |", "|---|---|---|---|---|---|"]
    missed: list[Goal] = []
    for goal in GOALS:
        rows = served(goal, found)
        verdict, measured = summary(rows)
        if any(row.reached is False for row in rows):
            missed.append(goal)
        part = f"[`{goal.part}`](../benchmarks/results/{goal.part}.md)" if goal.part in found else f"`{goal.part}`"
        cells = [goal.against, goal.case, goal.at_least, measured, verdict, part]
        lines.append(f"| {' | '.join(cells)} |")
    if missed:
        lines += ["", "## What was missed, and why"]
        for goal in missed:
            lines += _miss(goal, served(goal, found), notes)
    if "length" in found:
        lines += _growth(found["length"])
    lines += ["", "## The machine", ""]
    lines += [f"- `python -m benchmarks {name}`: {result.machine}." for name, result in found.items()]
    return "\n".join(lines) + "\n"


def served(goal: Goal, found: dict[str, Result]) -> list[Row]:
    """The rows that serve a goal."""
    return [row for row in found[goal.part].rows if row.goal == goal.key] if goal.part in found else []


def summary(rows: list[Row]) -> tuple[str, str]:
    """The verdict on a goal, and its numbers in short."""
    measured = [row for row in rows if not isinstance(row, Absent)]
    absent = [row for row in rows if isinstance(row, Absent)]
    if not measured:
        return "**not measured**", absent[0].measured if absent else ""
    good = sum(row.reached is True for row in measured)
    verdict = REACHED if good == len(measured) else MISSED
    if absent:
        verdict += f"; {len(absent)} row(s) **not measured**"
    if len(measured) == 1:
        return verdict, _short(measured[0])
    speeds = sorted((row for row in measured if isinstance(row, Speed)), key=lambda row: row.ratio.median)
    if not speeds:
        return verdict, "; ".join(_short(row) for row in measured)
    span = f"{speeds[0].ratio.median:.2f} to {speeds[-1].ratio.median:.2f}×"
    return verdict, f"{span}; {good} of {len(measured)} rows"


def note(key: str, notes: str) -> str:
    """What was written by hand on a goal; empty where nothing was."""
    found = re.search(rf"^## {re.escape(key)}\n(.*?)(?=^## |\Z)", notes, flags=re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def _short(row: Row) -> str:
    if isinstance(row, Growth):
        return f"{row.what}: {row.quantity} N^{row.exponent:.2f}"
    if isinstance(row, Speed):
        return f"{row.ratio}×".replace(" (", "× (").removesuffix("×")
    assert isinstance(row, Memory | Finding)
    return row.measured


def _miss(goal: Goal, rows: list[Row], notes: str) -> list[str]:
    lines = ["", f"### {goal.against.replace('`', '')}: {goal.case}", "", *report.HEAD]
    lines += [report.line_of(row) for row in rows if row.reached is False]
    lines += ["", note(goal.key, notes) or "Not explained yet."]
    return lines


def _growth(result: Result) -> list[str]:
    lines = ["", "## Time and memory against the length", ""]
    lines += [f"![time and peak memory of four layers, 256 to 8,192 tokens](pictures/{PICTURE.name})", ""]
    for quantity in ("time", "peak memory"):
        curves = picture.growths(result, quantity)
        for winner, loser, length, _ in picture.crossings(curves):
            lines.append(f"- In {quantity}, *{winner}* overtakes *{loser}* at about {round(length, -1):,.0f} tokens.")
    lines += [
        "",
        "One sequence, embed_dim 512, 8 heads, a forward pass without gradients. `nn.MultiheadAttention` takes",
    ]
    lines += ["its fast path, which is not causal and writes the whole map down; the others are causal."]
    return lines
