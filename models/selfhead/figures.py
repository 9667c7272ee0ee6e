"""The pictures of the lesson: ``python -m models.selfhead.figures``."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import drawing, lesson
from attnlab.docs.drawing import BLUE, GREY, INK, ORANGE, PALE

FOLDER = Path(__file__).parent
COST: dict[str, tuple[str, dict[str, object]]] = {"self-attention": ("selfhead", {})}


def draw(folder: Path) -> list[Path]:
    """Draw all pictures into ``folder``."""
    return [
        _path(folder / "path.png"),
        _three_tokens(folder / "three_tokens.png"),
        _map(folder / "map.png"),
        _cost(folder / "cost.png"),
    ]


def _path(file: Path) -> Path:
    """How far the first token is from the last: in a chain, and with attention."""
    figure, axes = drawing.canvas(6.4, 3.1, rows=2)
    titles = ("recurrence: 5 steps, through one state of fixed size", "attention: 1 step, straight from every token")
    for ax, title in zip(axes, titles, strict=True):
        drawing.bare(ax).set_title(title, fontsize=10, color=INK, loc="left")
        ax.set_xlim(-0.5, 5.5)
        for place in range(6):
            ax.text(place, 0, f"$x_{place + 1}$", ha="center", va="center", fontsize=12, color=INK, bbox=_box())
    chain, direct = axes
    chain.set_ylim(-0.6, 0.6)
    direct.set_ylim(-0.6, 2.4)
    for place in range(5):
        chain.annotate("", (place + 0.76, 0), (place + 0.24, 0), arrowprops=_arrow(ORANGE, 0))
        direct.annotate("", (5 - 0.06 * place, 0.45), (place, 0.45), arrowprops=_arrow(BLUE, -0.22))
    return drawing.save(figure, file)


def _three_tokens(file: Path) -> Path:
    """The weights of the three tokens under four rules, with what each row reads."""
    rules = {
        "causal": ([[1, 0, 0], [1, 2, 0], [1, 2, 4]], ["21", "35", "51"]),
        "both ways": ([[1, 2, 4], [1, 2, 4], [1, 2, 4]], ["51", "51", "51"]),
        "causal, window 2": ([[1, 0, 0], [1, 2, 0], [0, 2, 4]], ["21", "35", "56"]),
        "inverted by mistake": ([[0, 2, 4], [0, 0, 4], [0, 0, 0]], ["56", "63", "0"]),
    }
    figure, axes = drawing.canvas(7.6, 2.4, columns=4)
    for ax, (rule, (parts, reads)) in zip(axes, rules.items(), strict=True):
        weights = [[part / max(sum(row), 1) for part in row] for row in parts]
        drawing.draw_map(ax, weights, ["21", "42", "63"], rule)
        ax.set_yticks(range(3), labels=["1", "2", "3"])
        for i, row in enumerate(parts):
            for j, part in enumerate(row):
                colour = "white" if weights[i][j] > 0.55 else INK if part else GREY
                words = f"{part}/{sum(row)}" if part else "0"
                ax.text(j, i, words, ha="center", va="center", fontsize=9, color=colour)
            ax.text(2.65, i, f"→ {reads[i]}", ha="left", va="center", fontsize=10, color=BLUE)
        ax.set_xlabel("values", fontsize=9, color=INK)
    axes[0].set_ylabel("queries", fontsize=9, color=INK)
    return drawing.save(figure, file)


def _map(file: Path) -> Path:
    """Both layers of a network that goes on with a word which it has read once."""
    maps = lesson.read_text("selfhead").maps
    figure, axes = drawing.canvas(7.6, 4.1, columns=2)
    for ax, weights, title in zip(axes, maps[:, 0].tolist(), ("layer 1", "layer 2"), strict=True):
        drawing.draw_map(ax, weights, list(lesson.TEXT.replace(" ", "·")), title)
        ax.set_xlabel("looks at", fontsize=9, color=INK)
    axes[0].set_ylabel("a letter", fontsize=9, color=INK)
    return drawing.save(figure, file)


def _cost(file: Path) -> Path:
    """The time of a forward pass, as it was measured."""
    lengths, curves = lesson.read_cost(FOLDER)
    figure, (ax,) = drawing.canvas(6.0, 3.2)
    drawing.draw_curves(ax, lengths, curves)
    return drawing.save(figure, file)


def _box() -> dict[str, object]:
    return {"boxstyle": "round,pad=0.35", "facecolor": PALE, "edgecolor": GREY, "linewidth": 0.8}


def _arrow(colour: str, bend: float) -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "connectionstyle": f"arc3,rad={bend}"}


if __name__ == "__main__":
    lesson.main(draw, FOLDER, COST)
