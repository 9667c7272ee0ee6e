"""The picture of the lesson: ``python -m models.longformer.figures``."""

from __future__ import annotations

from pathlib import Path

from attnlab.docs import lesson

FOLDER = Path(__file__).parent


def draw(folder: Path) -> list[Path]:
    """Draw what it looks at into ``folder``."""
    return lesson.draw_reading(folder, "longformer", window_size=4)


if __name__ == "__main__":
    lesson.main(draw, FOLDER)
