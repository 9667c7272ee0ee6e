"""The report of ``attnlab bench`` as Markdown, and the numbers of a row as text."""

from __future__ import annotations

from pathlib import Path

from attnlab.bench import picture
from attnlab.bench.measurement import Group, Row
from attnlab.bench.results import FILE, Crossover, Result, crossovers
from attnlab.files.atomic import write_text
from attnlab.utils.escape import markdown

FILE_NAME = "report.md"
COLUMNS = ("model", "time", "relative", "tokens/s", "memory")

PHASES = {
    "training": "A forward and a backward pass.",
    "prefill": "A forward pass without gradients, which fills a cache where the mechanism has one.",
    "decode": "One token after the cached ones; memory includes the cache.",
}
METHOD = """\
All models run interleaved in the same rounds. *time* is the median of a call. *relative* is the time over that of the
first model, as the median (quartiles) of the ratios within the rounds: below 1, a model is faster. The control is the
ratio of two runs of the first model, and shows the noise. *memory* is the peak that a call allocates in addition to
parameters, gradients and input, counted in a process of its own."""


def write(result: Result, folder: Path, command: str) -> list[Path]:
    """Write report.md with its figures next to results.json, and return the files."""
    figures = picture.draw(result, folder)
    lines = ["# Benchmark", "", "```sh", command, "```", "", METHOD, ""]
    if not result.finished:
        lines += ["The measurement was stopped; this is the part that was measured.", ""]
    lines += [f"**Warning:** {markdown(line)}.\n" for line in result.warnings]
    if found := list(crossovers(result.groups)):
        lines += ["## Which is faster", "", *(f"- {markdown(sentence(each))}" for each in found), ""]
    for phase in dict.fromkeys(group.phase for group in result.groups):
        lines += [f"## {phase.capitalize()}", "", PHASES[phase], ""]
        for name in (figure.name for figure in figures if figure.name.startswith(phase)):
            lines += [f"![{phase}: time and peak memory by length]({name})", ""]
        for group in (g for g in result.groups if g.phase == phase):
            lines += [*_table(group), ""]
    machine = result.machine
    lines += ["## Environment", "", f"{machine.run}. {machine.environment}. {machine.source}.", ""]
    lines += [f"All values are in [{FILE}]({FILE})."]
    file = folder / FILE_NAME
    write_text(file, "\n".join(lines) + "\n")
    return [file, *figures]


def title(group: Group) -> str:
    """The case of a group as a heading."""
    cached = " cached" if group.phase == "decode" else ""
    return f"{group.phase}, {group.batch_size} × {group.length:,}{cached} tokens"


def cells(row: Row) -> tuple[str, ...]:
    """The values of a row, as `COLUMNS`."""
    time = "–" if row.seconds is None else seconds(row.seconds)
    speed = "–" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    memory = "–" if row.peak_bytes is None else size(row.peak_bytes)
    ratio = "–" if row.ratio is None else "1.00" if row.ratio.lower == row.ratio.upper == 1 else str(row.ratio)
    return row.model, time, ratio, speed, memory


def sentence(crossover: Crossover) -> str:
    """A crossover in words."""
    where = "at every length" if crossover.is_first else f"from about {crossover.length:,.0f} tokens on"
    batch = "" if crossover.batch_size == 1 else f" (batch {crossover.batch_size})"
    return f"{crossover.phase}{batch}: {crossover.model} is faster than {crossover.baseline} {where}"


def seconds(value: float) -> str:
    """A duration with three digits."""
    scale, unit = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 else (1e6, "µs")
    return f"{_three_digits(scale * value)} {unit}"


def size(value: float) -> str:
    """A number of bytes with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            break
        value /= 1024
    return f"{_three_digits(value)} {unit}" if unit != "B" else f"{value:.0f} B"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _table(group: Group) -> list[str]:
    lines = [f"### {title(group)}", "", f"| {' | '.join(COLUMNS)} | |", "|---|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(map(markdown, (*cells(row), row.reason)))} |" for row in group.rows]
    if group.control is not None:
        lines += ["", f"Control: {group.control}, {group.control.rounds} rounds."]
    return lines
