"""The figures of ``attnlab bench``: time and peak memory against the length, one file per phase and batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.bench.measurement import Row
from attnlab.bench.results import Crossover, Result, crossovers, curves
from attnlab.bench.workloads import Phase
from attnlab.utils import drawing
from attnlab.utils.drawing import BLUE, GREEN, GREY, INK, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (INK, BLUE, RED, GREEN, ORANGE, "#CC79A7", "#56B4E9")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))
"""Colours, markers and dashes have different periods, so that curves differ in two of them."""

LINE_POINTS = 10.5
"""The distance between two labels."""
MAX_LABEL = 34
"""The longest label, in characters."""

TIMES = {1.0: "s", 1e-3: "ms", 1e-6: "µs"}
SIZES = {2.0**30: "GiB", 2.0**20: "MiB", 2.0**10: "KiB", 1.0: "B"}


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw the figures of the cases with several lengths, and return their files."""
    files = []
    for (phase, batch_size), models in curves(result.groups).items():
        lengths = {length for rows in models.values() for length, row in rows.items() if row.seconds is not None}
        if len(lengths) > 1:
            file = folder / f"{phase}{'' if batch_size == 1 else f'-batch-{batch_size}'}.png"
            found = {c.model: c for c in crossovers(result.groups) if (c.phase, c.batch_size) == (phase, batch_size)}
            files.append(_draw_figure(phase, models, found, file))
    return files


def _draw_figure(
    phase: Phase, models: Mapping[str, Mapping[int, Row]], found: Mapping[str, Crossover], file: Path
) -> Path:
    styles = {name: _style(i) for i, name in enumerate(models)}
    times = {
        name: {n: row.seconds for n, row in rows.items() if row.seconds is not None} for name, rows in models.items()
    }
    sizes = {
        name: {n: float(row.peak_bytes) for n, row in rows.items() if row.peak_bytes} for name, rows in models.items()
    }
    panels = [(times, "time", TIMES), *([(sizes, "peak memory", SIZES)] if any(sizes.values()) else [])]
    height = max(4.0, 1.1 + len(models) * LINE_POINTS / 72)
    figure, axes = drawing.canvas(6.2 * len(panels), height, columns=len(panels))
    for ax, (values, quantity, units) in zip(axes, panels, strict=True):
        names = {name: name for name in values}
        if quantity == "time":
            names |= {name: f"{name}, {_faster(crossover)}" for name, crossover in found.items()}
        _draw_panel(ax, values, {name: _short(label) for name, label in names.items()}, styles, units)
        ax.set_title(f"{phase}: {quantity}", fontsize=10, color=INK, loc="left")
        ax.set_xlabel("cached tokens" if phase == "decode" else "length (tokens)", fontsize=9, color=INK)
    for name, crossover in found.items():
        if not crossover.is_first:
            y = _value_at(times[crossover.baseline], crossover.length)
            axes[0].plot(crossover.length, y, "o", ms=13, mfc="none", mec=styles[name]["color"], mew=1.3, zorder=4)
    return drawing.save(figure, file)


def _style(index: int) -> dict[str, Any]:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.6}


def _faster(crossover: Crossover) -> str:
    return "faster" if crossover.is_first else f"faster from {crossover.length:,.0f}"


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"


def _draw_panel(
    ax: Axes,
    values: Mapping[str, Mapping[int, float]],
    labels: Mapping[str, str],
    styles: Mapping[str, dict[str, Any]],
    units: Mapping[float, str],
) -> None:
    """Draw one curve per model on logarithmic axes, with its label to the right of the axes."""
    shown = {name: dict(sorted(points.items())) for name, points in values.items() if points}
    lengths = sorted({length for points in shown.values() for length in points})
    for name, points in shown.items():
        ax.plot(list(points), list(points.values()), ms=5, **styles[name])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xticks(lengths, labels=[f"{n:,}" for n in lengths], fontsize=8)
    ax.minorticks_off()
    ax.grid(color="#E4E4E4", linewidth=0.6)
    ax.set_axisbelow(True)
    smallest, largest = (limit(p for each in shown.values() for p in each.values()) for limit in (min, max))
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
    ticks = [m * 10.0**e for e in range(low - 1, high + 1) for m in (1, 2, 5)]
    if high - low > 2:
        ticks = [10.0**e for e in range(low - 1, high + 1)]
    if units is SIZES:  # powers of four
        ticks = [4.0**e for e in range(40)]
    bottom, top = smallest / 1.25, largest * 1.25
    ticks = [tick for tick in ticks if bottom <= tick <= top]
    ax.set_yticks(ticks, labels=[_with_unit(tick, units) for tick in ticks])
    ax.set_ylim(bottom, top)
    _draw_labels(ax, shown, labels, styles)


def _with_unit(value: float, units: Mapping[float, str]) -> str:
    scale, unit = next(((s, u) for s, u in units.items() if value >= s * (1 - 1e-9)), list(units.items())[-1])
    return f"{value / scale:,.3g} {unit}"


def _draw_labels(
    ax: Axes,
    curves_: Mapping[str, Mapping[int, float]],
    labels: Mapping[str, str],
    styles: Mapping[str, dict[str, Any]],
) -> None:
    """Put the labels of the curves in a column to the right, apart from each other, with a line to each end."""
    low, high = ax.get_ylim()
    height = 0.78 * 72 * ax.figure.bbox.height / drawing.DPI  # of the axes, in points
    fraction = {
        name: (math.log(list(points.values())[-1]) - math.log(low)) / (math.log(high) - math.log(low))
        for name, points in curves_.items()
    }
    names = sorted(fraction, key=lambda name: fraction[name])
    places = _spread([height * fraction[name] for name in names], LINE_POINTS, height)
    for name, place in zip(names, places, strict=True):
        length, value = list(curves_[name].items())[-1]
        colour = styles[name]["color"]
        ax.annotate(
            labels[name],
            (length, value),
            xytext=(1.08, place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def _spread(places: list[float], distance: float, height: float) -> list[float]:
    """The sorted ``places``, moved so that they are ``distance`` apart and, if possible, at most ``height``."""
    if not places:
        return []
    moved = [places[0]]
    for place in places[1:]:
        moved.append(max(place, moved[-1] + distance))
    excess = moved[-1] - height
    if excess > 0:  # push down from the top
        moved[-1] -= excess
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - distance)
    return moved


def _value_at(points: Mapping[int, float], length: float) -> float:
    """The value of a curve at a length, interpolated on logarithmic axes."""
    for (n1, v1), (n2, v2) in pairwise(sorted(points.items())):
        if n1 <= length <= n2:
            share = math.log(length / n1) / math.log(n2 / n1)
            return math.exp((1 - share) * math.log(v1) + share * math.log(v2))
    return next(iter(points.values()))
