"""Pictures for the lessons: one look for all of them, readable on light and on dark pages.

Deterministic: the same numbers give the same file, byte for byte on one machine. matplotlib is imported where
it is used, so that importing this module is instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe and Ito: apart for every eye
INK, GREY, PALE = "#222222", "#767676", "#EAF3F9"
COLOURS = (BLUE, RED, GREEN, ORANGE)
DPI = 120


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


def bare(ax: Axes) -> Axes:
    """Axes without a frame and ticks, to draw a diagram on."""
    ax.set_axis_off()
    return ax


def save(figure: Figure, path: Path) -> Path:
    """Write the picture, without a date in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def draw_map(ax: Axes, weights: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> None:
    """A map of weights: a row a query, a column a key, dark where much is taken; red where it is less than nothing."""
    signed = min(map(min, weights)) < -0.01
    ax.imshow(weights, cmap="RdBu" if signed else "Blues", vmin=-1 if signed else 0, vmax=1, interpolation="nearest")
    ax.set_xticks(range(len(labels)), labels=labels, fontsize=8, family="monospace")
    ax.set_yticks(range(len(labels)), labels=labels, fontsize=8, family="monospace")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=10, color=INK)


def draw_curves(ax: Axes, lengths: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    """Time against length, both doubling, with straight guides for n and n²; each curve is named at its end."""
    first = lengths[0]
    for power in (1, 2):
        ax.plot(lengths, [(n / first) ** power for n in lengths], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    ax.text(0.03, 0.94, "dashed: like n², like n", transform=ax.transAxes, fontsize=9, color=GREY)
    ends = sorted((ratios[-1], name) for name, ratios in curves.items())
    heights = {name: 0 for _, name in ends}
    for (below, lower), (above, upper) in pairwise(ends):
        if above < 1.4 * below:  # labels of curves that end together move apart
            heights[lower], heights[upper] = heights[lower] - 6, 6
    for colour, (name, ratios) in zip(COLOURS, curves.items(), strict=False):
        ax.plot(lengths, ratios, color=colour, linewidth=2, marker="o", markersize=4)
        end = (lengths[-1], ratios[-1])
        ax.annotate(name, end, (6, heights[name]), textcoords="offset points", **_beside(colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xticks(lengths, labels=[str(n) for n in lengths])
    ax.set_yticks([1, 10, 100, 1000], labels=["1", "10", "100", "1000"])
    ax.minorticks_off()
    ax.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.1)
    ax.set_xlabel("length n", fontsize=9, color=INK)
    ax.set_ylabel(f"time, as a multiple of n = {first}", fontsize=9, color=INK)


def _beside(colour: str) -> dict[str, Any]:
    return {"va": "center", "fontsize": 9, "color": colour, "annotation_clip": False}
