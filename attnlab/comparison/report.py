"""The reports of a comparison: one self-contained page, Markdown with pictures, CSV, and results.json."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnlab.comparison import analysis, results
from attnlab.comparison.pictures import pictures, png, svg
from attnlab.comparison.results import CaseRecord, Results
from attnlab.files.atomic import atomically, write_text
from attnlab.utils.escape import markdown, one_line, visible
from attnlab.utils.markdown import text_table

PAGE, MARKDOWN, CSV, PICTURES = "report.html", "report.md", "results.csv", "pictures"
FILES = (results.FILE, PAGE, MARKDOWN, CSV, PICTURES)
"""What the reports of a comparison consist of."""
SPREAD = 0.1
"""Timings whose interquartile range is larger than this, relative to the median, are marked."""


def write_reports(made: Results, folder: Path) -> list[Path]:
    """Write all reports; returns the page, the Markdown report, the JSON and the CSV."""
    drawn = pictures(made)
    (folder / PICTURES).mkdir(exist_ok=True)
    for picture in drawn:
        with atomically(folder / PICTURES / f"{picture.name}.png") as temporary:
            temporary.write_bytes(png(picture.figure))
    inline = [{"title": p.title, "text": p.text, "svg": svg(p)} for p in drawn]
    write_text(folder / PAGE, page(made, inline))
    write_text(folder / MARKDOWN, text(made, [(p.title, p.text, f"{PICTURES}/{p.name}.png") for p in drawn]))
    write_text(folder / CSV, table(made))
    return [folder / PAGE, folder / MARKDOWN, results.write(made, folder), folder / CSV]


def page(made: Results, drawn: Sequence[dict[str, str]]) -> str:
    """The page; it loads nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("attnlab.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else visible(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [{**each, "svg": Markup(each["svg"])} for each in drawn]
    return environment.get_template("report.html").render(
        made=made,
        facts=facts(made),
        tables=[(heading(made, point), header(made, point), rows(made, point)) for point in made.points],
        legend=legend(made),
        pictures=shown,
        capacities=capacities(made),
        baselines=baselines(made),
        rates=rates(made),
        runs=[run for run in made.trials if not run.tuning],
        number=analysis.number,
    )


def text(made: Results, drawn: Sequence[tuple[str, str, str]]) -> str:
    """The Markdown report."""
    parts = [f"# {markdown(made.question)}", f"**{markdown(made.verdict)}**"]
    parts.append(
        "\n".join(
            f"- **{name}**: {_code(value) if name == 'command' else markdown(value)}" for name, value in facts(made)
        )
    )
    for point in made.points:
        parts += [f"## {markdown(heading(made, point))}", text_table(header(made, point), rows(made, point))]
    parts.append("\n".join(f"- {markdown(line)}" for line in legend(made)))
    if made.capacities:
        parts += ["## Capacity", text_table(*capacities(made))]
    for title, caption, file in drawn:
        parts += [f"## {markdown(title)}", f"![{markdown(title)}]({file})", markdown(caption)]
    if made.baselines:
        parts += ["## Simpler methods", text_table(*baselines(made))]
    if any(case.tried for case in made.cases):
        parts += ["## Learning rates", text_table(*rates(made))]
    parts += ["## What was not run, and what does not follow", "\n".join(f"- {markdown(line)}" for line in made.limits)]
    return "\n\n".join(parts) + "\n"


def table(made: Results) -> str:
    """A CSV table with one row per run, including those that chose the learning rate."""
    columns = ("label", "point", "seed", "learning_rate", "tuning", "test", "validation", "seconds", "run", "error")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns[:1], made.sweep or "point", *columns[2:]])
    for trial in made.trials:
        cells = (getattr(trial, name) for name in columns)
        writer.writerow(["" if cell is None else _cell(cell) for cell in cells])
    return buffer.getvalue()


def facts(made: Results) -> list[tuple[str, str]]:
    """The header: name and value."""
    source = made.task if made.data is None else f"{made.data} ({made.task})"
    counts = " / ".join(f"{count:,} {name}" for name, count in made.examples.items())
    seeds = ", ".join(map(str, made.seeds)) if len(made.seeds) <= 20 else f"{len(made.seeds)}, from {made.seeds[0]}"
    return [
        ("data", f"{source}: {counts}; {made.length:,} tokens"),
        ("held equal", "; ".join(made.held_equal)),
        ("seeds", f"{seeds}; each gives all mechanisms the same data in the same order"),
        ("made with", f"{made.source}, {made.created}"),
        ("machine", made.machine),
        ("command", made.command or "made by the Python interface"),
    ]


def heading(made: Results, point: Any) -> str:
    """The heading of the table of a point."""
    return "Results" if point is None else f"{made.sweep} = {point}"


def header(made: Results, point: Any) -> list[str]:
    """The columns of the table of a point; those of the costs only where they were measured."""
    measured = any(case.cost for case in made.at(point))
    costs = ["training tokens/s", "prefill ms", "decode ms", "peak memory MB"] if measured else []
    label = f"{made.metric_label} {'↑' if made.higher_is_better else '↓'}"
    sizes = ["parameters", "state bytes per token", "state bytes per sequence"]
    return ["mechanism", label, "group", f"difference from {made.baseline}", "p", *sizes, *costs]


def rows(made: Results, point: Any) -> list[list[str]]:
    """The rows of the main table, best first."""
    return [_row(made, case) for case in made.at(point)]


def _row(made: Results, case: CaseRecord) -> list[str]:
    quality = "failed" if case.quality is None else f"{analysis.with_interval(case.quality)}"
    if case.quality is not None and case.failed:
        quality += f" (n = {case.quality.n}, {case.failed} failed)"
    difference, p = "", ""
    if case.difference is not None:
        difference = analysis.with_interval(case.difference)
        difference = difference if difference.startswith("−") else f"+{difference}"
        p = "< 0.001" if case.difference.p < 0.001 else f"{case.difference.p:.3f}" if case.difference.n > 1 else ""
    cells = [case.label, quality, case.letters, difference, p, f"{case.parameters:,}"]
    cells += ["–" if size is None else f"{size:,}" for size in (case.bytes_per_token, case.bytes_per_sequence)]
    if (cost := case.cost) is None:
        return cells
    mark = " ~" if cost.spread is not None and cost.spread > SPREAD else ""
    times = [cost.tokens_per_second, cost.prefill_ms, cost.decode_ms]
    cells += ["–" if value is None else f"{_digits(value)}{mark}" for value in times]
    return [*cells, "–" if cost.peak_bytes is None else _digits(cost.peak_bytes / 2**20)]


def legend(made: Results) -> list[str]:
    """How to read the main table."""
    lines = []
    if len(made.seeds) > 1:
        lines = [
            f"Mean ± half of the 95 % interval (Student's t) over {len(made.seeds)} seeds.",
            "Mechanisms that share a letter cannot be distinguished at n = "
            f"{len(made.seeds)}: paired t-tests of all pairs, corrected by Holm's method.",
            f"p: paired t-test against {made.baseline}, corrected by Holm's method for all comparisons with it; the "
            "intervals are not corrected.",
        ]
        detectable = [c.difference.detectable for c in made.cases if c.difference and c.difference.detectable]
        if detectable:
            lines.append(
                "The minimum detectable difference (level 0.05, power 0.8, one comparison) is "
                f"{analysis.number(min(detectable), min(detectable))} to "
                f"{analysis.number(max(detectable), max(detectable))}, depending on the pair."
            )
    lines.append("State: what decoding keeps of a sequence, per token and in total; – where there is no cache.")
    costs = [(case.label, case.cost) for case in made.cases if case.cost]
    if costs:
        lengths = " or ".join(f"{length:,}" for length in dict.fromkeys(cost.length for _, cost in costs))
        lines.append(
            f"Speed and memory: measured in turn on one thread, batch {costs[0][1].batch}, {lengths} tokens; a value "
            f"marked ~ has an interquartile range of more than {SPREAD:.0%}. Compare them within this report only."
        )
        missing: dict[str, list[str]] = {}
        for label, cost in costs:
            for note in cost.notes:
                missing.setdefault(note, []).append(label)
        for note, labels in missing.items():
            lines.append(f"No {note}" if len(labels) == len(costs) else f"{', '.join(labels)}: no {note}")
    return lines


def capacities(made: Results) -> tuple[list[str], list[list[str]]]:
    """The table of capacities, largest first."""
    states = {case.label: case.state_bytes(made.length) for case in made.cases}
    head = ["mechanism", f"{made.sweep} at {analysis.THRESHOLD:.0%} accuracy", "state bytes"]
    body = [
        [each.label, analysis.capacity_text(each, made), "–" if (size := states[each.label]) is None else f"{size:,}"]
        for each in analysis.ranked(made.capacities)
    ]
    return head, body


def baselines(made: Results) -> tuple[list[str], list[list[str]]]:
    """The table of simpler methods."""
    swept = made.sweep is not None
    head = ["method", *([str(made.sweep)] if swept else []), made.metric_label]
    body = [
        [each.name, *([str(each.point)] if swept else []), analysis.with_interval(each.quality)]
        for each in made.baselines
    ]
    return head, body


def rates(made: Results) -> tuple[list[str], list[list[str]]]:
    """The validation metric of every learning rate that was tried; the chosen one is marked."""
    tried = sorted({rate for case in made.cases for rate in case.tried}, key=float)
    swept = made.sweep is not None
    head = ["mechanism", *([str(made.sweep)] if swept else []), *tried]
    body = []
    for case in made.cases:
        cells = []
        for rate in tried:
            value = case.tried.get(rate)
            chosen = " ←" if float(rate) == case.learning_rate else ""
            cells.append("failed" if value is None else f"{analysis.number(value, None)}{chosen}")
        body.append([case.label, *([str(case.point)] if swept else []), *cells])
    return head, body


def _digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _cell(value: Any) -> str:
    """A cell that a spreadsheet does not take for a formula."""
    cell = one_line(str(value))
    return f"'{cell}" if isinstance(value, str) and cell[:1] in "=+-@" else cell


def _code(value: str) -> str:
    text = one_line(value)
    marks = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{marks} {text} {marks}" if len(marks) > 1 else f"`{text}`"
