"""Figures for the lessons and benchmarks, in one style that is readable on light and on dark pages.

Deterministic: the same data gives the same file, byte for byte on one machine. matplotlib is imported where it is
used, so that importing this module is instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito: safe for colour blindness
INK, GREY, PALE = "#222222", "#767676", "#EAF3F9"
COLOURS = (BLUE, RED, GREEN, ORANGE)
DPI = 120

Matrix = Sequence[Sequence[float]]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A white figure of ``width`` by ``height`` inches with ``rows`` x ``columns`` axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=9)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write the figure without metadata, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def draw_heat_maps(
    figure: Figure, axes: Sequence[Axes], matrices: Sequence[Matrix], labels: Sequence[str], titles: Sequence[str]
) -> None:
    """Attention matrices with query positions as rows, key positions as columns, and one shared colour bar.

    The colours range up to 1, or up to the largest weight if that is above 1, or so small that 1 would leave it pale.
    """
    lowest = min(min(map(min, matrix)) for matrix in matrices)
    largest = max(-lowest, *(max(map(max, matrix)) for matrix in matrices))
    limit = largest if 0 < largest < 0.5 else max(1.0, largest)
    font_size = 8 if len(labels) <= 10 or len(axes) <= 4 else 5.5
    colour_map, lower_limit = ("RdBu", -limit) if lowest < -0.01 else ("Blues", 0.0)
    for ax, matrix, title in zip(axes, matrices, titles, strict=True):
        image = ax.imshow(matrix, cmap=colour_map, vmin=lower_limit, vmax=limit, interpolation="nearest")
        ax.set_xticks(range(len(labels)), labels=labels, fontsize=font_size, family="monospace")
        ax.set_yticks(range(len(labels)), labels=labels, fontsize=font_size, family="monospace")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title, fontsize=10, color=INK)
    for ax in axes:
        cell = ax.get_subplotspec()
        if cell is None or cell.is_last_row():
            ax.set_xlabel("key position", fontsize=9, color=INK)
        if cell is None or cell.is_first_col():
            ax.set_ylabel("query position", fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.035, pad=0.02)
    bar.set_label("attention weight", fontsize=9, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=8)


def draw_proportions(ax: Axes, parts: Sequence[int], title: str, colour: str) -> None:
    """Bars for the attention weights on the values 21, 42 and 63, labelled as fractions."""
    total = sum(parts)
    bars = ax.bar(range(3), [part / total for part in parts], color=colour, width=0.65)
    ax.bar_label(bars, [f"{part}/{total}" for part in parts], fontsize=9, color=INK, padding=2)
    ax.set_xticks(range(3), labels=["21", "42", "63"])
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_ylim(0, 0.7)
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel("value", fontsize=9, color=INK)
    ax.set_ylabel("attention weight", fontsize=9, color=INK)


def draw_curves(
    ax: Axes,
    lengths: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    *,
    x_label: str = "sequence length n",
    guides: Mapping[str, int] = MappingProxyType({"∝ n": 1, "∝ n²": 2}),
) -> None:
    """Relative time against length on logarithmic axes; curves and ``guides`` (name to power) have labels."""
    first = lengths[0]
    highest = max(max(ratios) for ratios in curves.values())
    for name, power in guides.items():
        guide = [(n / first) ** power for n in lengths]
        highest = max(highest, guide[-1])
        ax.plot(lengths, guide, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(name, (lengths[-1], guide[-1]), (-4, 4), textcoords="offset points", ha="right", **_text(GREY))
    ends = sorted((ratios[-1], name) for name, ratios in curves.items())
    offsets = {name: 0 for _, name in ends}
    for (below, lower), (above, upper) in pairwise(ends):
        if above < 1.4 * below:  # keep the names of curves with close ends apart
            offsets[lower], offsets[upper] = offsets[lower] - 6, 6
    for colour, (name, ratios) in zip(COLOURS, curves.items(), strict=False):
        ax.plot(lengths, ratios, color=colour, linewidth=2, marker="o", markersize=4)
        end = (lengths[-1], ratios[-1])
        ax.annotate(name, end, (6, offsets[name]), textcoords="offset points", va="center", **_text(colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xticks(lengths, labels=[str(n) for n in lengths])
    ticks = [tick for tick in (1, 10, 100, 1000) if tick <= highest]
    ax.set_yticks(ticks, labels=[str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.1)
    ax.set_xlabel(x_label, fontsize=9, color=INK)
    ax.set_ylabel(f"time relative to n = {first}", fontsize=9, color=INK)


def _text(colour: str) -> dict[str, Any]:
    return {"fontsize": 9, "color": colour, "annotation_clip": False}
