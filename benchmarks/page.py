"""docs/performance.md and its figure, generated from the recorded results."""

from __future__ import annotations

import re
from pathlib import Path

from attnlab.bench.crossover import crossing
from benchmarks import picture, report, results
from benchmarks.goals import GOALS, Goal
from benchmarks.results import MET, MISSED, NOT_MEASURED, Growth, Note, NotMeasured, Result, Row, Speed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "pictures" / "performance.png"
NOTES = Path(__file__).parent / "notes.md"
"""Why a target was missed, written by hand; each heading is the key of a goal."""

OPENING = """\
# Speed and memory

The speed and the memory of the layers and ops of attnlab, compared with other libraries. This page is generated from
[the latest results](../benchmarks/README.md); do not edit it. To measure again:

```sh
make bench
```

Both sides compute the same function with the same parameters, and their outputs are compared first. They run
interleaved in one process on one core, and the clock is the CPU time of the process. A speed is the median (lower–upper
quartile) over all rounds of their time divided by ours. A goal is met if all of its rows meet the target; a parity goal
has a target for the lower quartile too. Each row of the results has a control, the ratio of two runs of ours, which
shows the noise.
"""

FIGURE = """
One sequence, embed_dim 512, 8 heads, a forward pass without gradients. `nn.MultiheadAttention` uses its fast path,
which is not causal and materializes the attention weights. The other layers are causal."""

CROSSOVERS = """\
The time of a training step of `multihead` divided by that of the mechanism, by the number of tokens. Causal, one
sequence, embed_dim 512, 8 heads, float32. The last column interpolates the length at which both take the same time."""


def write() -> list[Path]:
    """Write the page, its figure and the report of each part from the recorded results."""
    recorded = results.read_all(report.RESULTS)
    for name, result in recorded.items():
        report.record(result, report.load(name))
    PAGE.write_text(page(recorded, NOTES.read_text(encoding="utf-8")), encoding="utf-8")
    return [PAGE, picture.draw(recorded["length"], PICTURE)] if "length" in recorded else [PAGE]


def page(recorded: dict[str, Result], notes: str) -> str:
    lines = [OPENING, "| baseline | case | target | measured | | part |", "|---|---|---|---|---|---|"]
    missed: list[str] = []
    for goal in GOALS:
        rows = rows_of(goal, recorded)
        verdict, measured = summary(rows)
        part = f"[`{goal.part}`](../benchmarks/results/{goal.part}.md)" if goal.part in recorded else f"`{goal.part}`"
        lines.append(f"| {goal.baseline} | {goal.case} | {goal.target} | {measured} | {verdict} | {part} |")
        if below := [row.markdown() for row in rows if row.met is False]:
            missed += ["", f"### {goal.baseline.replace('`', '')}: {goal.case}", "", *report.HEAD, *below]
            missed += ["", note(goal.key, notes) or "Not explained yet."]
    if missed:
        lines += ["", "## Missed targets, and why", *missed]
    if "length" in recorded:
        lines += _growth(recorded["length"])
    if "recurrences" in recorded:
        lines += _crossovers(recorded["recurrences"])
    if "gpu" in recorded:
        lines += _gpu(recorded["gpu"], notes)
    lines += ["", "## Environment"]
    for environment in dict.fromkeys(result.machine.environment for result in recorded.values()):
        lines += ["", f"{environment}:", ""]
        runs = {name: result.machine for name, result in recorded.items() if result.machine.environment == environment}
        lines += [f"- `python -m benchmarks {name}`: {machine.run}." for name, machine in runs.items()]
    return "\n".join(lines) + "\n"


def rows_of(goal: Goal, recorded: dict[str, Result]) -> list[Row]:
    return [row for row in recorded[goal.part].rows if row.goal == goal.key] if goal.part in recorded else []


def summary(rows: list[Row]) -> tuple[str, str]:
    """The verdict on a goal, and the range of its measured values."""
    measured = [row for row in rows if not isinstance(row, NotMeasured)]
    missing = [row for row in rows if isinstance(row, NotMeasured)]
    if not measured:
        return NOT_MEASURED, missing[0].measured if missing else ""
    met = sum(row.met is True for row in measured)
    verdict = MET if met == len(measured) else MISSED
    if missing:
        verdict += f"; {len(missing)} row(s) {NOT_MEASURED}"
    if len(measured) == 1:
        return verdict, measured[0].measured
    ranges = []
    if ratios := sorted(row.ratio.median for row in measured if isinstance(row, Speed)):
        ranges.append(f"{ratios[0]:.2f} to {ratios[-1]:.2f}×")
    growths = [row for row in measured if isinstance(row, Growth)]
    for quantity in dict.fromkeys(row.quantity for row in growths):
        exponents = sorted(row.exponent for row in growths if row.quantity == quantity)
        ranges.append(f"{quantity} N^{exponents[0]:.2f} to N^{exponents[-1]:.2f}")
    return verdict, "; ".join([*([", ".join(ranges)] if ranges else []), f"{met} of {len(measured)} rows"])


def note(key: str, notes: str) -> str:
    """The text under the heading of a goal, empty if there is none."""
    match = re.search(rf"^## {re.escape(key)}\n(.*?)(?=^## |\Z)", notes, flags=re.DOTALL | re.MULTILINE)
    return match[1].strip() if match else ""


def _crossovers(result: Result) -> list[str]:
    """How fast each recurrence trains at each length compared with full attention."""
    rows = [row for row in result.rows if isinstance(row, Note) and row.goal == "crossover" and row.values]
    if not rows:
        return []
    lengths = list(rows[0].values)
    lines = ["", "## From which length a recurrence trains faster than attention", "", CROSSOVERS, ""]
    lines += [
        f"| mechanism | {' | '.join(f'{int(N):,}' for N in lengths)} | faster from |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for row in rows:
        medians = [row.values[N][1] for N in lengths]
        length = crossing(tuple(map(int, lengths)), medians)
        start = f"more than {int(lengths[-1]):,}" if length is None else f"{length:,.0f}"
        lines.append(f"| {row.case.split(',')[0]} | {' | '.join(f'{m:.2f}×' for m in medians)} | {start} |")
    return lines


def _growth(result: Result) -> list[str]:
    lines = ["", "## Time and memory by length", ""]
    lines += [f"![time and peak memory of four layers, 128 to 8,192 tokens](pictures/{PICTURE.name})", ""]
    for quantity in ("time", "peak memory"):
        for winner, loser, length in picture.crossings(picture.curves_of(result, quantity)):
            verb = "is faster than" if quantity == "time" else "uses less memory than"
            lines.append(f"- From about {round(length, -1):,.0f} tokens on, *{winner}* {verb} *{loser}*.")
    return [*lines, *FIGURE.split("\n")]


def _gpu(result: Result, notes: str) -> list[str]:
    rows = [row.markdown() for row in result.rows if not isinstance(row, NotMeasured)]
    return ["", "## On a GPU", "", report.load("gpu").ABOUT, "", *report.HEAD, *rows, "", note("gpu", notes)]
