"""The pictures of the lesson: ``python -m models.multihead.figures``."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import drawing, lesson
from attnlab.docs.drawing import BLUE, GREEN, INK, ORANGE

FOLDER = Path(__file__).parent
COST = {
    "1 head, 64 wide": ("multihead", {"num_heads": 1}),
    "4 heads, 16 wide": ("multihead", {"num_heads": 4}),
    "8 heads, 8 wide": ("multihead", {"num_heads": 8}),
}


def draw(folder: Path) -> list[Path]:
    """Draw all pictures into ``folder``."""
    return [_two_heads(folder / "two_heads.png"), _map(folder / "map.png"), _cost(folder / "cost.png")]


def _two_heads(file: Path) -> Path:
    """What the last token takes of 21, 42 and 63 with one head, and with two."""
    figure, axes = drawing.canvas(7.2, 2.9, columns=3)
    readers = {
        "one head\n1 : 1 : 1  →  42": ((1, 1, 1), GREEN),
        "head 1 of 2\n1 : 2 : 4  →  51": ((1, 2, 4), BLUE),
        "head 2 of 2\n4 : 2 : 1  →  33": ((4, 2, 1), ORANGE),
    }
    for ax, (title, (parts, colour)) in zip(axes, readers.items(), strict=True):
        heights = [part / sum(parts) for part in parts]
        bars = ax.bar(range(3), heights, color=colour, width=0.65)
        ax.bar_label(bars, [f"{part}/{sum(parts)}" for part in parts], fontsize=9, color=INK, padding=2)
        ax.set_xticks(range(3), labels=["21", "42", "63"])
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.set_ylim(0, 0.7)
        ax.set_title(title, fontsize=10, color=INK)
    axes[0].set_ylabel("weight", fontsize=9, color=INK)
    figure.supxlabel("what the three tokens carry", fontsize=9, color=INK)
    return drawing.save(figure, file)


def _map(file: Path) -> Path:
    """The four maps of a network that goes on with a word which it has read once."""
    return lesson.draw_maps(lesson.read_text("multihead", num_heads=2).maps, file)


def _cost(file: Path) -> Path:
    """The time of a forward pass, as it was measured."""
    lengths, curves = lesson.read_cost(FOLDER)
    figure, (ax,) = drawing.canvas(6.0, 3.4)
    drawing.draw_curves(ax, lengths, curves)
    return drawing.save(figure, file)


if __name__ == "__main__":
    lesson.main(draw, FOLDER, COST)
