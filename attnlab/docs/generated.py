"""What is generated in the documentation: the index of mechanisms and the head of every lesson, from the cards.

A generated part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; all else in a page is written by people
and left as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from attnlab.catalog import registry
from attnlab.docs import trust
from attnlab.nn.card import CAPABILITIES
from attnlab.utils.errors import UnknownNameError, UserError

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
    root = registry.checkout()
    if root is None:
        raise UserError(f"attnlab is installed in {registry.folder().parent}; its pages are generated in a checkout")
    entries = [registry.entry(name) for name in registry.names()]
    index = _page(registry.folder() / "README.md", {"table": table(entries), "family": family(entries)})
    wanted = registry.names() if lessons is None else lessons
    found = [index, *(_page(e.folder / "README.md", {"card": head(e)}) for e in entries if e.name in wanted)]
    proved = root / "docs" / "trust.md"
    if proved.is_file():
        folders = {e.name: e.folder for e in entries}
        found.append(_page(proved, {"trust": trust.page(folders, _growth(root / "benchmarks" / "results"))}))
    return found


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
    badge = trust.badge(trust.read(entry.folder))
    return f"{_table((card.title, card.summary), rows)}\n\n{LEGEND}" + (f"\n\n{badge}" if badge else "")


def family(entries: Sequence[registry.Entry]) -> str:
    """Who changed what of whom: every mechanism under the one that it changes.

    Raises:
        UserError: for a parent that is no mechanism, or a circle.
    """
    cards = {e.name: e.card for e in entries}
    for name, card in cards.items():
        if card.parent and card.parent not in cards:
            raise UnknownNameError(f"parent of {name}", card.parent, cards)
    lines: list[str] = []

    def under(parent: str, depth: int) -> None:
        for name, card in cards.items():
            if card.parent == parent:
                lines.append(f"{'  ' * depth}- [{card.title}]({name}/README.md), {card.year}: {card.summary}")
                under(name, depth + 1)

    under("", 0)
    if len(lines) < len(cards):
        raise UserError("the parents in the cards go round in a circle; one mechanism must have none")
    return "\n".join(lines)


def _growth(results: Path) -> dict[str, tuple[str, str]]:
    """The exponents that ``python -m benchmarks mechanisms`` measured, as text."""
    file = results / "mechanisms.json"
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        lengths, values = row["lengths"], row["values"]
        power = math.log(values[-1] / values[0]) / math.log(lengths[-1] / lengths[0])
        found.setdefault(row["what"], {})[row["quantity"]] = f"n^{power:.2f}"
    return {name: (powers["time"], powers["peak memory"]) for name, powers in found.items()}


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


def _page(path: Path, parts: Mapping[str, str]) -> Page:
    marks = {name: (f"<!-- {name} -->", f"<!-- /{name} -->") for name in parts}
    try:
        written = wanted = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        opening, closing = next(iter(marks.values()))
        raise UserError(f"{path} is missing; write it with the lines {opening} and {closing} in it") from None
    for name, content in parts.items():
        opening, closing = marks[name]
        before, opened, rest = wanted.partition(f"{opening}\n")
        _, closed, after = rest.partition(closing)
        if not opened or not closed:
            raise UserError(f"{path} has no place for what is generated; put the lines {opening} and {closing} in it")
        wanted = f"{before}{opened}{content}\n{closed}{after}"
    return Page(path, written, wanted)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
