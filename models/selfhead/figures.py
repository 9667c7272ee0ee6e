"""The lesson's own figures and the layers whose cost it shows (see `attnlab.docs.lesson`)."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import lesson
from attnlab.utils import drawing
from attnlab.utils.drawing import BLUE, GREY, INK, ORANGE, PALE

COST: lesson.Layers = {"self-attention": ("selfhead", {})}


def draw(folder: Path) -> list[Path]:
    """Draw the figures into ``folder``."""
    cost = lesson.draw_cost(Path(__file__).parent, folder / "cost.png")
    return [_path_length(folder / "path.png"), _three_tokens(folder / "three_tokens.png"), cost]


def _path_length(file: Path) -> Path:
    """The number of steps from the first token to the last: in a recurrent network, and with attention."""
    figure, axes = drawing.canvas(6.4, 3.1, rows=2)
    titles = ("recurrence: 5 steps, through a state of fixed size", "attention: 1 step, from every token directly")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_axis_off()
        ax.set_title(title, fontsize=10, color=INK, loc="left")
        ax.set_xlim(-0.5, 5.5)
        for position in range(6):
            box = {"boxstyle": "round,pad=0.35", "facecolor": PALE, "edgecolor": GREY, "linewidth": 0.8}
            ax.text(position, 0, f"$x_{position}$", ha="center", va="center", fontsize=12, color=INK, bbox=box)
    chain, direct = axes
    chain.set_ylim(-0.6, 0.6)
    direct.set_ylim(-0.6, 2.4)
    for position in range(5):
        chain.annotate("", (position + 0.76, 0), (position + 0.24, 0), arrowprops=_arrow(ORANGE, 0))
        direct.annotate("", (5 - 0.06 * position, 0.45), (position, 0.45), arrowprops=_arrow(BLUE, -0.22))
    return drawing.save(figure, file)


def _three_tokens(file: Path) -> Path:
    """The attention weights of the three tokens under four masks, with the output of each row."""
    variants = {
        "causal": ([[1, 0, 0], [1, 2, 0], [1, 2, 4]], ["21", "35", "51"]),
        "bidirectional": ([[1, 2, 4], [1, 2, 4], [1, 2, 4]], ["51", "51", "51"]),
        "causal, window of 2": ([[1, 0, 0], [1, 2, 0], [0, 2, 4]], ["21", "35", "56"]),
        "inverted by mistake": ([[0, 2, 4], [0, 0, 4], [0, 0, 0]], ["56", "63", "0"]),
    }
    weights = [[[part / max(sum(row), 1) for part in row] for row in parts] for parts, _ in variants.values()]
    figure, axes = drawing.canvas(8.2, 2.5, columns=4)
    drawing.draw_heat_maps(figure, axes, weights, ["0", "1", "2"], list(variants))
    for ax, matrix, (parts, outputs) in zip(axes, weights, variants.values(), strict=True):
        for i, row in enumerate(parts):
            for j, part in enumerate(row):
                colour = "white" if matrix[i][j] > 0.55 else INK if part else GREY
                label = f"{part}/{sum(row)}" if part else "0"
                ax.text(j, i, label, ha="center", va="center", fontsize=9, color=colour)
            ax.text(2.65, i, f"→ {outputs[i]}", ha="left", va="center", fontsize=10, color=BLUE)
    return drawing.save(figure, file)


def _arrow(colour: str, bend: float) -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "connectionstyle": f"arc3,rad={bend}"}
