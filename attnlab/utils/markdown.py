"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnlab.utils.escape import markdown


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown themselves; only ``|`` is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, bold: str | None = None) -> str:
    """A Markdown table of plain text; the row whose first cell is ``bold`` is highlighted."""
    lines = [[markdown(cell) for cell in header], ["---"] * len(header)]
    for name, *cells in rows:
        first = f"**{markdown(name)}**" if name == bold else markdown(name)
        lines.append([first, *map(markdown, cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
