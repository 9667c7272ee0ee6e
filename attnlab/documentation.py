"""What is generated in the documentation: the index of mechanisms and the head of every lesson, from the cards.

A generated part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; all else in a page is written by people
and left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from attnlab import registry
from attnlab.card import CAPABILITIES
from attnlab.errors import UserError

LEGEND = "n is the length of the sequence, d the width of a token (`embed_dim`), h the number of heads."


@dataclass(frozen=True)
class Page:
    """A page as it stands and as it should."""

    path: Path
    written: str
    wanted: str

    @property
    def stale(self) -> bool:
        """Whether it no longer says what the cards say."""
        return self.written != self.wanted


def pages(lessons: Sequence[str] | None = None) -> list[Page]:
    """The pages with a generated part: the index, and the lessons of these mechanisms (None: all).

    Raises:
        UserError: outside of a checkout; for a page that is missing or has no place for its part; for a card that
            cannot be read.
    """
    if registry.checkout() is None:
        raise UserError(f"attnlab is installed in {registry.folder().parent}; its pages are generated in a checkout")
    entries = [registry.entry(name) for name in registry.names()]
    index = _page(registry.folder() / "README.md", "table", table(entries))
    wanted = registry.names() if lessons is None else lessons
    return [index, *(_page(e.folder / "README.md", "card", head(e)) for e in entries if e.name in wanted)]


def update(lessons: Sequence[str] | None = None) -> list[Path]:
    """Write what is stale of `pages`; returns what was written, and raises what it does."""
    stale = [page for page in pages(lessons) if page.stale]
    for page in stale:
        page.path.write_text(page.wanted, encoding="utf-8")
    return [page.path for page in stale]


def table(entries: Sequence[registry.Entry]) -> str:
    """The comparison of mechanisms, a row each."""
    columns = ("mechanism", "paper", "heads", "time", "memory", "representation", "use it for", "supports")
    rows = [
        (
            f"[{e.card.title}]({e.name}/README.md) `{e.name}`",
            f"{e.card.authors} {e.card.year}",
            e.card.heads,
            e.card.time,
            e.card.memory,
            e.card.representation,
            e.card.use_case,
            ", ".join(e.card.supports),
        )
        for e in entries
    ]
    return f"{_table(columns, rows)}\n\n{LEGEND}"


def head(entry: registry.Entry) -> str:
    """A mechanism's card, as its lesson shows it."""
    card = entry.card
    paper = f"[{card.paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.paper
    rows = [
        ("paper", f"{paper}, {card.authors} {card.year}" + (f", arXiv:{card.arxiv}" if card.arxiv else "")),
        ("kind", card.kind),
        ("heads", card.heads),
        ("time", card.time),
        ("memory", card.memory),
        ("representation", card.representation),
        ("use it for", card.use_case),
        ("supports", "; ".join(f"**{name}** ({CAPABILITIES[name]})" for name in card.supports)),
        ("train it", f"`python main.py --model {entry.name}`"),
        ("check it", f"`attnlab check {entry.name}`"),
    ]
    return f"{_table((card.title, card.summary), rows)}\n\n{LEGEND}"


def draw_figures(name: str) -> list[Path]:
    """Draw a lesson's pictures, by ``draw(folder)`` in the mechanism's ``figures.py``; none where it has no such file.

    Raises:
        UnknownNameError: for a name that no folder has.
        UserError: for a ``figures.py`` without ``draw``.
    """
    folder = registry.entry(name).folder
    if not (folder / "figures.py").is_file():
        return []
    draw = getattr(import_module(f"attnlab.models.{name}.figures"), "draw", None)
    if draw is None:
        raise UserError(f"models/{name}/figures.py has no draw(folder), which returns the pictures that it drew")
    return list(draw(folder / "figures"))


def _page(path: Path, name: str, content: str) -> Page:
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        written = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; write it with the lines {opening} and {closing} in it") from None
    before, opened, rest = written.partition(f"{opening}\n")
    _, closed, after = rest.partition(closing)
    if not opened or not closed:
        raise UserError(f"{path} has no place for what is generated; put the lines {opening} and {closing} in it")
    return Page(path, written, f"{before}{opened}{content}\n{closed}{after}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
