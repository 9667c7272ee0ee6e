"""The lesson's own figures and the layers whose cost it shows (see `attnlab.docs.lesson`)."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import lesson
from attnlab.utils import drawing
from attnlab.utils.drawing import BLUE, GREY, INK, ORANGE, PALE

EXAMPLE = {"num_heads": 2, "num_kv_heads": 1}
COST: lesson.Layers = {
    "4 heads of keys": ("groupedquery", {"num_heads": 4, "num_kv_heads": 4}),
    "1 head of keys": ("groupedquery", {"num_heads": 4, "num_kv_heads": 1}),
}
DECODING: lesson.Layers = {
    "h_kv = 8": ("groupedquery", {"num_heads": 8, "num_kv_heads": 8}),
    "h_kv = 2": ("groupedquery", {"num_heads": 8, "num_kv_heads": 2}),
    "h_kv = 1": ("groupedquery", {"num_heads": 8, "num_kv_heads": 1}),
}


def draw(folder: Path) -> list[Path]:
    """Draw the figures into ``folder``."""
    here, file = Path(__file__).parent, folder / "decoding.png"
    decoding = lesson.draw_cost(here, file, "decoding", x_label="tokens in the KV cache", guides={"∝ n": 1})
    return [_sharing(folder / "sharing.png"), _two_heads(folder / "two_heads.png"), decoding]


def _sharing(file: Path) -> Path:
    """Which query heads share a key-value head, for 8, 2 and 1 key-value heads."""
    figure, axes = drawing.canvas(7.6, 2.5, columns=3)
    for ax, title, kv_heads in zip(axes, ("multi-head", "grouped-query", "multi-query"), (8, 2, 1), strict=True):
        ax.set_axis_off()
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlim(-0.6, 7.6)
        ax.set_ylim(-0.9, 1.5)
        group = 8 // kv_heads
        for head in range(8):
            middle = head // group * group + (group - 1) / 2
            ax.plot([head, middle], [1, 0], color=GREY, linewidth=1, zorder=1)
            ax.plot(head, 1, "o", color=BLUE, markersize=9, zorder=2)
            ax.plot(middle, 0, "s", color=ORANGE, markersize=11, zorder=2)
        ax.text(3.5, 1.32, "8 query heads", ha="center", fontsize=9, color=BLUE)
        label = f"{kv_heads} key-value head{'s' if kv_heads > 1 else ''}"
        ax.text(3.5, -0.5, label, ha="center", fontsize=9, color=INK)
        ax.text(3.5, -0.8, f"KV cache: {kv_heads}/8 of the size", ha="center", fontsize=9, color=GREY)
    return drawing.save(figure, file)


def _two_heads(file: Path) -> Path:
    """The attention weights of two query heads on the same key-value head."""
    figure, (keys, late, early) = drawing.canvas(7.2, 2.9, columns=3)
    keys.set_axis_off()
    keys.set_title("stored once per token", fontsize=10, color=INK)
    keys.set_xlim(-0.6, 2.6)
    keys.set_ylim(-0.5, 2.5)
    for j, value in enumerate((21, 42, 63)):
        box = {"boxstyle": "round,pad=0.5", "facecolor": PALE, "edgecolor": GREY, "linewidth": 0.8}
        keys.text(1, 2 - j, f"key {j}\nvalue {value}", ha="center", va="center", fontsize=10, color=INK, bbox=box)
    drawing.draw_proportions(late, (1, 2, 4), "query head 1: late tokens\n1 : 2 : 4  →  51", BLUE)
    drawing.draw_proportions(early, (4, 2, 1), "query head 2: early tokens\n4 : 2 : 1  →  33", ORANGE)
    return drawing.save(figure, file)
