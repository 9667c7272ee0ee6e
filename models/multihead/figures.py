"""The lesson's own figures and the layers whose cost it shows (see `attnlab.docs.lesson`)."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import lesson
from attnlab.utils import drawing
from attnlab.utils.drawing import BLUE, GREEN, ORANGE

COST: lesson.Layers = {
    "1 head, 64 wide": ("multihead", {"num_heads": 1}),
    "4 heads, 16 wide": ("multihead", {"num_heads": 4}),
    "8 heads, 8 wide": ("multihead", {"num_heads": 8}),
}


def draw(folder: Path) -> list[Path]:
    """Draw the figures into ``folder``."""
    return [_two_heads(folder / "two_heads.png"), lesson.draw_cost(Path(__file__).parent, folder / "cost.png")]


def _two_heads(file: Path) -> Path:
    """The attention weights of the last token on the values 21, 42 and 63, with one head and with two."""
    figure, axes = drawing.canvas(7.2, 2.9, columns=3)
    drawing.draw_proportions(axes[0], (1, 1, 1), "one head\n1 : 1 : 1  →  42", GREEN)
    drawing.draw_proportions(axes[1], (1, 2, 4), "head 1 of 2\n1 : 2 : 4  →  51", BLUE)
    drawing.draw_proportions(axes[2], (4, 2, 1), "head 2 of 2\n4 : 2 : 1  →  33", ORANGE)
    return drawing.save(figure, file)
