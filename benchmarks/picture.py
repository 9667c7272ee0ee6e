"""Time and peak memory against the length, from what was kept: where the curves cross is marked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from attnlab.docs import drawing
from attnlab.docs.drawing import BLUE, GREEN, INK, ORANGE, RED
from benchmarks.results import Growth, Result

COLOURS = (RED, BLUE, GREEN, ORANGE)


def crossings(curves: list[Growth]) -> Iterator[tuple[str, str, float, float]]:
    """(winner, loser, length, value) where a curve passes below another for good, between two measured lengths.

    Curves that end within a tenth of each other are one to the eye, and none overtakes the other.
    """
    for loser in curves:
        for winner in curves:
            ratios = [math.log(w / v) for w, v in zip(winner.values, loser.values, strict=True)]
            above = [i for i, ratio in enumerate(ratios) if ratio > 0]
            if not above or ratios[-1] > math.log(0.9):
                continue
            i = above[-1]
            share = ratios[i] / (ratios[i] - ratios[i + 1])
            length, value = (
                math.exp(math.log(at[i]) + share * math.log(at[i + 1] / at[i])) for at in (loser.lengths, loser.values)
            )
            yield winner.what, loser.what, length, value


def growths(result: Result, quantity: str) -> list[Growth]:
    """The curves of one quantity."""
    return [row for row in result.rows if isinstance(row, Growth) and row.quantity == quantity]


def draw(result: Result, file: Path) -> Path:
    """Two pictures side by side, both axes logarithmic; a circle where a curve overtakes another."""
    figure, axes = drawing.canvas(10.0, 4.2, columns=2)
    for ax, (quantity, unit, scale) in zip(
        axes, [("time", "milliseconds", 1e3), ("peak memory", "megabytes", 2**-20)], strict=True
    ):
        curves = growths(result, quantity)
        lengths = curves[0].lengths
        colours = dict(zip([curve.what for curve in curves], COLOURS, strict=False))
        for size, curve in zip(
            (4, 3, 2, 1), curves, strict=False
        ):  # the later over the earlier, where they are the same
            ax.plot(
                lengths,
                [scale * v for v in curve.values],
                color=colours[curve.what],
                linewidth=1 + 0.6 * size,
                marker="o",
                markersize=2 + 1.5 * size,
            )
        for name, height in _spread(curves, scale):
            beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
            ax.annotate(name, (lengths[-1], height), (8, 0), fontsize=9, color=colours[name], **beside)
        line = 0.97
        for winner, loser, length, value in crossings(curves):
            ax.plot([length], [scale * value], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
            ax.text(
                0.03,
                line,
                f"{winner} overtakes {loser} at {length:,.0f}",
                transform=ax.transAxes,
                fontsize=8,
                color=colours[winner],
                va="top",
            )
            line -= 0.055
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=10)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** (0.09 * len(list(crossings(curves)))))  # room for what overtakes what
        ax.set_xticks(lengths, labels=[f"{n:,}" for n in lengths])
        ax.minorticks_off()
        ax.set_xlabel("length", fontsize=9, color=INK)
        ax.set_title(f"{quantity} of a forward pass, {unit}", fontsize=10, color=INK)
    return drawing.save(figure, file)


def _spread(curves: list[Growth], scale: float) -> Iterator[tuple[str, float]]:
    """Names beside the ends of their curves, moved apart where they would lie on each other."""
    values = [scale * v for curve in curves for v in curve.values]
    apart = (max(values) / min(values)) ** 0.08  # a line of text, as a factor on this axis
    ends: list[list[Any]] = sorted([scale * curve.values[-1], curve.what] for curve in curves)
    for _ in range(100):
        for below, above in pairwise(ends):
            if (gap := above[0] / below[0]) < apart:
                push = (apart / gap) ** 0.5
                below[0], above[0] = below[0] / push, above[0] * push
    for height, name in ends:
        yield name, height
