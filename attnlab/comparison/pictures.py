"""The pictures of a comparison, as SVG for the page and PNG for the Markdown report.

Every mechanism has a marker, a line style and a label of its own, so that no picture needs colour to be read.
matplotlib is imported where it is used.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnlab.comparison import analysis
from attnlab.comparison.labels import label_ends, label_points
from attnlab.comparison.results import CaseRecord, IntervalRecord, Results, TrialRecord
from attnlab.tasks.metrics import CLASS_METRICS
from attnlab.utils import drawing
from attnlab.utils.drawing import GREY, INK
from attnlab.utils.escape import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#767676", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MAX_CURVES = 12
"""Panels of learning curves; with more mechanisms those that rank first are shown."""


@dataclass(frozen=True)
class Picture:
    """A figure, its file name without suffix, its heading and what it shows in words."""

    name: str
    title: str
    text: str
    figure: Figure


def pictures(results: Results) -> list[Picture]:
    """The pictures that the results allow."""
    swept = results.sweep is not None and len(results.points) > 1
    with _missing_characters():
        made = [
            _sweep(results) if swept else None,
            _capacity(results),
            _ranking(results),
            _pareto_state(results),
            _pareto_cost(results, "decode_ms", "decoding of one token (ms)", "decode", "decoding time"),
            _pareto_cost(results, "prefill_ms", "forward pass of a sequence (ms)", "prefill", "prefill time"),
            _curves(results),
        ]
    return [picture for picture in made if picture is not None]


def png(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    buffer = io.BytesIO()
    with _missing_characters():
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def svg(picture: Picture) -> str:
    """The figure as an SVG element without a background, whose ink has the colour of the text around it."""
    import matplotlib

    buffer = io.StringIO()
    with (
        _missing_characters(),
        matplotlib.rc_context({"svg.hashsalt": picture.name}),
    ):  # the same file for the same figure; distinct ids
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" aria-hidden="true">', text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)  # hundredths of a point
    # matplotlib reuses ids such as figure_1 in every figure
    text = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\1{picture.name}-", text)
    return text.replace(INK.lower(), "currentColor").replace(INK, "currentColor").strip()


# The pictures


def _ranking(results: Results) -> Picture | None:
    """Means with intervals, and the seeds."""
    point = results.points[-1]
    cases = [case for case in results.at(point) if case.quality is not None]
    if not cases:
        return None
    figure, (ax,) = _canvas(7.4, 1.1 + 0.3 * len(cases) + 0.18 * len(results.baselines))
    values = _tests(results, point)
    styles = _styles(results)
    for row, case in enumerate(cases):
        assert case.quality is not None
        colour, marker, _ = styles[case.label]
        seeds = values.get(case.label, [])
        ax.plot(seeds, [row] * len(seeds), "|", color=colour, markersize=9, alpha=0.55)
        low, high = _error(case.quality, results)
        ax.errorbar(
            case.quality.mean, row, xerr=[[low], [high]], fmt=marker, color=colour, capsize=4, markersize=6, lw=1.6
        )
    for style, baseline in zip(itertools.cycle(("--", ":", "-.")), results.baselines, strict=False):
        if baseline.point in (point, None) or len(results.points) == 1:
            mean = baseline.quality.mean
            ax.axvline(mean, color=GREY, ls=style, lw=1, label=f"{_short(baseline.name)} {analysis.number(mean, None)}")
    ax.set_yticks(range(len(cases)), labels=[f"{_short(case.label)}  {case.letters}" for case in cases], fontsize=9)
    ax.set_ylim(len(cases) - 0.5, -0.6)
    ax.set_xlabel(f"test {results.metric_label}", fontsize=9, color=INK)
    ax.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    if ax.get_legend_handles_labels()[0]:
        legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=1)
        _ink(legend.get_texts())
    where = "" if point is None else f" at {results.sweep} {point}"
    return Picture(
        "ranking",
        f"Test {results.metric_label}{where}",
        "Mean and 95 % interval of each mechanism; the short strokes are the seeds, the vertical lines simpler "
        "methods. Mechanisms that share a letter cannot be distinguished.",
        figure,
    )


def _sweep(results: Results) -> Picture | None:
    """The metric against the sweep, with intervals."""
    axis = [p for p in results.points if isinstance(p, int | float) and not isinstance(p, bool)]
    numeric = len(axis) == len(results.points)
    xs: list[float] = [float(p) for p in axis] if numeric else [float(i) for i in range(len(results.points))]
    figure, (ax,) = _canvas(7.4, 4.2)
    styles = _styles(results)
    ends: list[tuple[float, float, str, str]] = []
    for label in results.labels:
        colour, marker, line = styles[label]
        by_point = {case.point: case.quality for case in results.cases if case.label == label}
        known = [(x, q) for x, p in zip(xs, results.points, strict=True) if (q := by_point.get(p)) is not None]
        if not known:
            continue
        errors = [_error(q, results) for _, q in known]
        ax.errorbar(
            [x for x, _ in known],
            [q.mean for _, q in known],
            yerr=[[low for low, _ in errors], [high for _, high in errors]],
            color=colour,
            marker=marker,
            ls=line,
            capsize=3,
            lw=1.6,
            markersize=5,
        )
        ends.append((known[-1][0], known[-1][1].mean, _short(label), colour))
    if results.capacities:
        ax.axhline(analysis.THRESHOLD, color=GREY, lw=0.8, ls=":")
    if numeric and min(xs) > 0 and max(xs) >= 4 * min(xs):
        ax.set_xscale("log", base=2)
    ax.set_xticks(xs, labels=[f"{p:,}" if numeric else str(p) for p in results.points])
    ax.minorticks_off()
    ax.set_xlabel(str(results.sweep).replace("_", " "), fontsize=9, color=INK)
    ax.set_ylabel(f"test {results.metric_label}", fontsize=9, color=INK)
    ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
    label_ends(ax, ends)
    return Picture(
        "sweep",
        f"Test {results.metric_label} against {str(results.sweep).replace('_', ' ')}",
        "Mean and 95 % interval over the seeds."
        + (" The dotted line is the accuracy at which the capacity is read." if results.capacities else ""),
        figure,
    )


def _capacity(results: Results) -> Picture | None:
    """Where accuracy falls below the threshold, against the bytes that decoding keeps."""
    sizes = {case.label: case.state_bytes(results.length) for case in results.cases}
    shown = [(each, x) for each in results.capacities if (x := sizes[each.label])]
    if len(shown) < 2:
        return None
    figure, (ax,) = _canvas(7.4, 4.2)
    styles = _styles(results)
    axis = [float(point) for point in results.points if isinstance(point, int | float)]
    points, bars = [], []
    for each, x in shown:
        colour, marker, _ = styles[each.label]
        if each.at is not None:
            y, (low, high) = each.at.mean, _error(each.at)
            ax.errorbar(x, y, yerr=[[low], [high]], fmt=marker, color=colour, capsize=4, markersize=7)
        else:  # it never falls so far in most seeds, or starts below
            y = axis[-1] if each.above >= each.below else axis[0]
            ax.plot(x, y, marker, color=colour, markersize=7, fillstyle="none")
            up, arrow = each.above >= each.below, {"arrowstyle": "<-", "color": colour}
            ax.annotate("", (x, y), (0, 16 if up else -16), textcoords="offset points", arrowprops=arrow)
            low, high = (0.0, 0.2 * y) if up else (0.2 * y, 0.0)  # about the arrow, so that no label covers it
        bars.append((low, high))
        points.append((float(x), y, _short(each.label), colour))
    ax.set_xscale("log")
    ax.set_yscale("log", base=2)
    ax.set_ylim(axis[0] / 1.6, axis[-1] * 1.6)
    ax.set_yticks(axis, labels=[f"{value:,g}" for value in axis])
    xs = [x for x, *_ in points]
    ax.set_xlim(min(xs) / 1.6, max(xs) * 2.6)
    _plain_ticks(ax, xs)
    name = str(results.sweep).replace("_", " ")
    ax.set_xlabel(f"bytes that decoding keeps of {results.length:,} tokens", fontsize=9, color=INK)
    ax.set_ylabel(f"{name} at {analysis.THRESHOLD:.0%} accuracy", fontsize=9, color=INK)
    ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
    label_points(ax, points, bars)
    return Picture(
        "capacity",
        "Capacity against the memory of decoding",
        f"The {name} at which accuracy falls below {analysis.THRESHOLD:.0%}: mean and 95 % interval over the seeds. "
        "Open markers with an arrow lie beyond the sweep.",
        figure,
    )


def _pareto_state(results: Results) -> Picture | None:
    """Quality against the bytes that decoding keeps."""
    return _pareto(
        results,
        lambda case: case.state_bytes(results.length),
        f"bytes that decoding keeps of {results.length:,} tokens",
        "state",
        "state size",
    )


def _pareto_cost(results: Results, field: str, label: str, name: str, against: str) -> Picture | None:
    """Quality against a measured time."""
    return _pareto(results, lambda case: getattr(case.cost, field, None), label, name, against)


def _pareto(
    results: Results, cost: Callable[[CaseRecord], float | None], label: str, name: str, against: str
) -> Picture | None:
    point = results.points[-1]
    cases = [(c, x) for c in results.at(point) if c.quality is not None and (x := cost(c)) is not None and x > 0]
    if len(cases) < 2:
        return None
    figure, (ax,) = _canvas(7.4, 4.4)
    styles = _styles(results)
    points, bars = [], []
    for case, x in cases:
        assert case.quality is not None
        colour, marker, _ = styles[case.label]
        low, high = _error(case.quality, results)
        bars.append((low, high))
        ax.errorbar(x, case.quality.mean, yerr=[[low], [high]], fmt=marker, color=colour, capsize=4, markersize=7)
        points.append((float(x), case.quality.mean, _short(case.label), colour))
    complete = [(float(x), c.quality.mean) for c, x in cases if c.quality is not None and not c.failed]
    front = _front(complete, higher_is_better=results.higher_is_better)
    ax.step([x for x, _ in front], [y for _, y in front], where="post", color=GREY, lw=1, ls="--", zorder=0)
    ax.set_xscale("log")
    xs = [x for x, *_ in points]
    ax.set_xlim(min(xs) / 1.6, max(xs) * (2.6 if max(xs) / min(xs) < 50 else 4))
    _plain_ticks(ax, xs)
    ax.set_xlabel(label, fontsize=9, color=INK)
    ax.set_ylabel(f"test {results.metric_label}", fontsize=9, color=INK)
    ax.grid(color=GREY, alpha=0.25, linewidth=0.6)
    label_points(ax, points, bars)
    where = "" if point is None else f" at {results.sweep} {point}"
    return Picture(
        f"pareto-{name}",
        f"Test {results.metric_label} against {against}{where}",
        "Mean and 95 % interval over the seeds. The dashed line is the Pareto front: no cheaper mechanism has a better "
        "mean than one on it.",
        figure,
    )


def _curves(results: Results) -> Picture | None:
    """The validation metric during training: a panel per mechanism, thin seeds and a band."""
    point = results.points[-1]
    chosen = {case.label for case in results.at(point)[:MAX_CURVES]}
    runs: dict[str, list[TrialRecord]] = {}
    for trial in results.trials:
        if trial.label in chosen and trial.point in (point, *_shared(results)) and not trial.tuning and trial.curve:
            runs.setdefault(trial.label, []).append(trial)
    if not runs:
        return None
    columns = min(4, len(runs))
    rows = math.ceil(len(runs) / columns)
    figure, axes = _canvas(2.1 * columns + 0.9, 1.75 * rows + 0.5, rows, columns)
    styles = _styles(results)
    means = {label: _mean_curve(trials) for label, trials in runs.items()}
    values = [y for steps, mean, _ in means.values() for y in mean] + [
        y for trials in runs.values() for trial in trials for _, y in trial.curve if y is not None
    ]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low or 1)
    for index, ax in enumerate(axes):
        if index >= len(runs):
            ax.set_visible(False)
            continue
        label = [*runs][index]
        for other, (steps, mean, _) in means.items():
            if other != label:
                ax.plot(steps, mean, color=GREY, lw=0.7, alpha=0.5)
        colour, _, _ = styles[label]
        for trial in runs[label]:
            known = [(step, y) for step, y in trial.curve if y is not None]
            ax.plot([s for s, _ in known], [y for _, y in known], color=colour, lw=0.6, alpha=0.6)
        steps, mean, half = means[label]
        ax.plot(steps, mean, color=colour, lw=1.8)
        ax.fill_between(
            steps,
            [m - h for m, h in zip(mean, half, strict=True)],
            [m + h for m, h in zip(mean, half, strict=True)],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        ax.set_ylim(low - margin, high + margin)
        ax.set_title(_short(label, 24), fontsize=9, color=INK)
        ax.tick_params(labelsize=7)
        ax.grid(color=GREY, alpha=0.2, linewidth=0.5)
        if index % columns:
            ax.tick_params(labelleft=False)
    figure.supxlabel("step", fontsize=9, color=INK)
    figure.supylabel(f"validation {results.metric_label}", fontsize=9, color=INK)
    left = len(results.at(point)) - len(chosen)
    return Picture(
        "curves",
        "Learning curves",
        "Thin lines are seeds, the thick line their mean, the band its 95 % interval, and the grey lines the other "
        f"mechanisms{f'; the {left} that rank last are not shown' if left > 0 else ''}.",
        figure,
    )


# Parts


def _canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure whose axes have the colour that `svg` replaces."""
    figure, axes = drawing.canvas(width, height, rows, columns)
    for ax in axes:
        ax.spines[:].set_edgecolor(INK)
    return figure, axes


@contextmanager
def _missing_characters() -> Iterator[None]:
    """A character that the font lacks is drawn as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _shared(results: Results) -> tuple[Any, ...]:
    """The points whose runs stand for all others, where the sweep changes the test data alone."""
    points = {trial.point for trial in results.trials}
    return tuple(points) if len(points) == 1 else ()


def _tests(results: Results, point: Any) -> dict[str, list[float]]:
    """The test metric of every seed at a point, by label."""
    values: dict[str, list[float]] = {}
    if _shared(results) and len(results.points) > 1:
        return values
    for trial in results.trials:
        if trial.point == point and not trial.tuning and trial.test is not None:
            values.setdefault(trial.label, []).append(trial.test)
    return values


def _mean_curve(trials: Sequence[TrialRecord]) -> tuple[list[int], list[float], list[float]]:
    """The steps that all runs were evaluated at, the mean and half of its interval."""
    curves = [{step: y for step, y in trial.curve if y is not None} for trial in trials]
    steps = sorted(set.intersection(*map(set, curves)))
    mean, half = [], []
    for step in steps:
        values = [curve[step] for curve in curves]
        interval = analysis.interval_record(values, 0.0)
        assert interval is not None
        mean.append(statistics.fmean(values))
        half.append(analysis.half_width(interval) or 0.0)
    return steps, mean, half


def _styles(results: Results) -> dict[str, tuple[str, str, Any]]:
    """A colour, a marker and a line style for each label."""
    cycles = zip(results.labels, itertools.cycle(COLOURS), itertools.cycle(MARKERS), itertools.cycle(LINES))
    return {label: (colour, marker, line) for label, colour, marker, line in cycles}


def _error(value: IntervalRecord, results: Results | None = None) -> tuple[float, float]:
    """The distances from the mean to the ends of the interval; an interval of an accuracy is drawn from 0 to 1."""
    if value.low is None or value.high is None:
        return 0.0, 0.0
    low, high = value.low, value.high
    if results is not None and results.metric in CLASS_METRICS:
        low, high = max(low, 0.0), min(high, 1.0)
    return value.mean - low, high - value.mean


def _front(points: Iterable[tuple[float, float]], *, higher_is_better: bool) -> list[tuple[float, float]]:
    """The points that no cheaper point is better than, cheapest first."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1] if higher_is_better else p[1])):
        if not front or (y > front[-1][1] if higher_is_better else y < front[-1][1]):
            front.append((x, y))
    return front


def _plain_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers: 1, 2 and 5 times powers of ten, or the powers alone."""
    low, high = min(values) / 1.6, max(values) * 2.6
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1_000 else (1,)
    ticks = [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
    ax.set_xticks(ticks, labels=[f"{tick:,.10g}" for tick in ticks])
    ax.minorticks_off()


def _short(text: str, most: int = 40) -> str:
    """A name in a figure: on one line, short, and with ``$`` escaped."""
    text = one_line(text)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def _ink(texts: Iterable[Any]) -> None:
    for text in texts:
        text.set_color(INK)
