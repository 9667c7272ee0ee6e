"""The pictures of the lesson: ``python -m models.groupedquery.figures``."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import drawing, lesson
from attnlab.docs.drawing import BLUE, GREY, INK, ORANGE, PALE

FOLDER = Path(__file__).parent
COST = {
    "4 heads of keys": ("groupedquery", {"num_heads": 4, "num_kv_heads": 4}),
    "1 head of keys": ("groupedquery", {"num_heads": 4, "num_kv_heads": 1}),
}
DECODING = {
    "h_kv = 8": ("groupedquery", {"num_heads": 8, "num_kv_heads": 8}),
    "h_kv = 2": ("groupedquery", {"num_heads": 8, "num_kv_heads": 2}),
    "h_kv = 1": ("groupedquery", {"num_heads": 8, "num_kv_heads": 1}),
}


def draw(folder: Path) -> list[Path]:
    """Draw all pictures into ``folder``."""
    return [
        _sharing(folder / "sharing.png"),
        _two_readers(folder / "two_readers.png"),
        _map(folder / "map.png"),
        _decoding(folder / "decoding.png"),
    ]


def _sharing(file: Path) -> Path:
    """Which heads of queries read which head of keys and values, for 8, 2 and 1 of them."""
    figure, axes = drawing.canvas(7.6, 2.5, columns=3)
    titles = ("multi-head", "grouped-query", "multi-query")
    for ax, title, shared in zip(axes, titles, (8, 2, 1), strict=True):
        drawing.bare(ax).set_title(title, fontsize=10, color=INK)
        ax.set_xlim(-0.6, 7.6)
        ax.set_ylim(-0.9, 1.5)
        size = 8 // shared
        for head in range(8):
            middle = head // size * size + (size - 1) / 2
            ax.plot([head, middle], [1, 0], color=GREY, linewidth=1, zorder=1)
            ax.plot(head, 1, "o", color=BLUE, markersize=9, zorder=2)
            ax.plot(middle, 0, "s", color=ORANGE, markersize=11, zorder=2)
        ax.text(3.5, 1.32, "8 heads of queries", ha="center", fontsize=9, color=BLUE)
        kept = f"{shared} head{'s' if shared > 1 else ''} of keys and values"
        ax.text(3.5, -0.5, kept, ha="center", fontsize=9, color=INK)
        ax.text(3.5, -0.8, f"a cache of {shared}/8", ha="center", fontsize=9, color=GREY)
    return drawing.save(figure, file)


def _two_readers(file: Path) -> Path:
    """What two heads take of one and the same head of keys and values."""
    figure, axes = drawing.canvas(7.2, 2.9, columns=3)
    keys, *heads = axes
    drawing.bare(keys).set_title("kept once a token", fontsize=10, color=INK)
    keys.set_xlim(-0.6, 2.6)
    keys.set_ylim(-0.5, 2.5)
    for j, value in enumerate((21, 42, 63)):
        box = {"boxstyle": "round,pad=0.5", "facecolor": PALE, "edgecolor": GREY, "linewidth": 0.8}
        words = f"key {j}\nvalue {value}"
        keys.text(1, 2 - j, words, ha="center", va="center", fontsize=10, color=INK, bbox=box)
    readers = {
        "head 1: who is late?\n1 : 2 : 4  →  51": ((1, 2, 4), BLUE),
        "head 2: who is early?\n4 : 2 : 1  →  33": ((4, 2, 1), ORANGE),
    }
    for ax, (title, (parts, colour)) in zip(heads, readers.items(), strict=True):
        bars = ax.bar(range(3), [part / 7 for part in parts], color=colour, width=0.65)
        ax.bar_label(bars, [f"{part}/7" for part in parts], fontsize=9, color=INK, padding=2)
        ax.set_xticks(range(3), labels=["21", "42", "63"])
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.set_ylim(0, 0.7)
        ax.set_title(title, fontsize=10, color=INK)
    heads[0].set_ylabel("weight", fontsize=9, color=INK)
    return drawing.save(figure, file)


def _map(file: Path) -> Path:
    """The maps of a network whose two heads share their keys, in both layers."""
    return lesson.draw_maps(lesson.read_text("groupedquery", num_heads=2, num_kv_heads=1).maps, file)


def _decoding(file: Path) -> Path:
    """The time of one token more, as it was measured."""
    lengths, curves = lesson.read_cost(FOLDER, "decoding")
    figure, (ax,) = drawing.canvas(6.0, 3.4)
    drawing.draw_curves(ax, lengths, curves)
    ax.set_ylim(0.4, 40)
    ax.set_xlabel("tokens in the cache", fontsize=9, color=INK)
    return drawing.save(figure, file)


if __name__ == "__main__":
    lesson.main(draw, FOLDER, COST, DECODING)
