"""The figure of docs/performance.md: time and peak memory by length, from the recorded results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attnlab.bench.crossover import crossing
from attnlab.utils import drawing
from attnlab.utils.drawing import BLUE, GREEN, INK, ORANGE, RED
from benchmarks.results import Growth, Result

COLOURS = (RED, BLUE, GREEN, ORANGE)
MARKERS = ("o", "s", "^", "D")
WIDTHS = (4.5, 3.5, 1.8, 1.2)
"""Decreasing, so that curves that coincide stay visible."""
PANELS = (("time", "time of a forward pass (ms)", 1e3), ("peak memory", "peak memory of a forward pass (MB)", 2**-20))


def crossings(curves: list[Growth]) -> Iterator[tuple[str, str, float]]:
    """(winner, loser, length) where a curve falls below another for all longer lengths, interpolated.

    Curves that end within a tenth of each other count as equal.
    """
    for loser in curves:
        for winner in curves:
            ratios = [v / w for w, v in zip(winner.values, loser.values, strict=True)]
            if min(ratios) < 1 and ratios[-1] >= 1 / 0.9 and (length := crossing(loser.lengths, ratios)) is not None:
                yield winner.case, loser.case, length


def curves_of(result: Result, quantity: str) -> list[Growth]:
    return [row for row in result.rows if isinstance(row, Growth) and row.quantity == quantity]


def draw(result: Result, file: Path) -> Path:
    """Draw time and memory side by side on logarithmic axes, with one legend."""
    figure, axes = drawing.canvas(9.0, 4.2, columns=len(PANELS))
    for ax, (quantity, label, scale) in zip(axes, PANELS, strict=True):
        curves = curves_of(result, quantity)
        for curve, colour, marker, width in zip(curves, COLOURS, MARKERS, WIDTHS, strict=False):
            values = [scale * value for value in curve.values]
            ax.plot(curve.lengths, values, marker, ls="-", color=colour, lw=width, ms=4 + width, label=curve.case)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=10)
        ax.set_xticks(curves[0].lengths, labels=[f"{n:,}" for n in curves[0].lengths], fontsize=8)
        ax.minorticks_off()
        ax.grid(color="#DDDDDD", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel("length (tokens)", fontsize=9, color=INK)
        ax.set_ylabel(label, fontsize=9, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return drawing.save(figure, file)
