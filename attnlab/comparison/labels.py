"""Labels beside points and curves, at places that are free of other labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnlab.utils.drawing import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABELS = 40
"""Labels in one picture; a later one is left out."""


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Labels to the right of the curves' last points, moved apart vertically."""
    ax.figure.canvas.draw()
    height = 11 * ax.figure.dpi / 72
    placed: list[float] = []
    for x, y, label, colour in sorted(ends, key=lambda end: -end[1])[:MAX_LABELS]:
        at = float(ax.transData.transform((x, y))[1])
        wanted = min(at, placed[-1] - height) if placed else at
        placed.append(wanted)
        offset = (wanted - at) * 72 / ax.figure.dpi
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkB": 3} if abs(offset) > 8 else None
        ax.annotate(
            label,
            (x, y),
            (12, offset),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops=line,
        )


def label_points(
    ax: Axes, points: Sequence[tuple[float, float, str, str]], bars: Sequence[tuple[float, float]]
) -> None:
    """A label beside each point, at the nearest place that is free of other points, their error bars and labels."""
    figure = ax.figure
    figure.canvas.draw()
    scale = figure.dpi / 72
    spots = [tuple(map(float, ax.transData.transform((x, y)))) for x, y, _, _ in points]
    taken = [(px - 6 * scale, py - 6 * scale, px + 6 * scale, py + 6 * scale) for px, py in spots]
    for (x, y, _, _), (low, high) in zip(points, bars, strict=True):
        (px, bottom), (_, top) = ax.transData.transform([(x, y - low), (x, y + high)])
        taken.append((px - 2 * scale, bottom, px + 2 * scale, top))
    area = ax.get_window_extent()
    for (x, y, label, colour), (px, py) in list(zip(points, spots, strict=True))[:MAX_LABELS]:
        width, height = 5.0 * len(label) * scale, 10 * scale
        for dx, dy in _offsets():
            left = px + dx * scale - (width if dx < 0 else 0)
            box = (left, py + dy * scale - height / 2, left + width, py + dy * scale + height / 2)
            inside = area.x0 <= box[0] and box[2] <= area.x1 + 60 * scale and area.y0 <= box[1] and box[3] <= area.y1
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.5} if abs(dy) > 12 or abs(dx) > 14 else None
        ax.annotate(
            label,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha="right" if dx < 0 else "left",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops=line,
        )


def _offsets() -> list[tuple[float, float]]:
    """Places for a label around a point, nearest first, in points."""
    near = [(9, 0), (-9, 0), (9, 9), (9, -9), (-9, 9), (-9, -9)]
    far = [(side * 18, sign * d) for d in range(12, 130, 11) for side in (1, -1) for sign in (1, -1)]
    return [*near, *far]


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
