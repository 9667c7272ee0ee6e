"""The generated parts of the documentation: the index of mechanisms, and the badge and card of every lesson.

A generated part stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; the rest of a page is never changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnlab.catalog import registry
from attnlab.claims import page as claims
from attnlab.docs import hybrids, tasks, trust
from attnlab.nn.card import CAPABILITIES, WEIGHTS, Card
from attnlab.utils import markdown
from attnlab.utils.errors import UnknownNameError, UserError

LEGEND = "n is the sequence length, d the width of a token (`embed_dim`), h the number of heads."
EXPLORER = "http://127.0.0.1:8765/"
"""The page of `attnlab explore` while it runs, at its default port."""
OTHER_LETTERS = "`attnlab models NAME` explains the other letters."


@dataclass(frozen=True)
class Page:
    """A page with generated parts: its current text and the text that the cards give."""

    path: Path
    current: str
    generated: str

    @property
    def stale(self) -> bool:
        """Whether the page differs from the cards."""
        return self.current != self.generated


def pages(lessons: Sequence[str] | None = None) -> list[Page]:
    """The pages with generated parts: the index, README.md, three pages of docs/ and these lessons (None: all).

    Raises:
        UserError: outside a checkout; for a page that is missing or lacks the marks; for a card that cannot be read.
    """
    root = registry.checkout()
    if root is None:
        raise UserError(f"attnlab is installed in {registry.folder().parent}; its pages are generated in a checkout")
    entries = [registry.entry(name) for name in registry.names()]
    parts = {registry.folder() / "README.md": {"table": table(entries), "family": family(entries)}}
    for e in entries:
        if lessons is None or e.name in lessons:
            parts[e.folder / "README.md"] = {"badge": badge(e), "card": card(e)}
            if shown := claims.lesson(e.name):
                parts[e.folder / "README.md"]["claims"] = shown
    if (file := root / "README.md").is_file():
        parts[file] = {"mechanisms": overview(entries)}
    if (file := root / "docs" / "trust.md").is_file():
        growth = _growth(root / "benchmarks" / "results" / "mechanisms.json")
        parts[file] = {"trust": trust.page({e.name: e.folder for e in entries}, growth)}
    if (file := root / "docs" / "claims.md").is_file():
        parts[file] = {"claims": claims.page()}
    if (file := root / "docs" / "hybrids.md").is_file():
        parts[file] = {"hybrids": hybrids.recorded(root / "docs" / "hybrids.json")}
    if (file := root / "docs" / "tasks.md").is_file():
        parts[file] = {"tasks": tasks.recorded(root / "docs" / "tasks.json")}
    return [_page(path, content) for path, content in parts.items()]


def update(lessons: Sequence[str] | None = None) -> list[Path]:
    """Write the stale pages and return their paths; raises what `pages` raises."""
    stale = [page for page in pages(lessons) if page.stale]
    for page in stale:
        page.path.write_text(page.generated, encoding="utf-8")
    return [page.path for page in stale]


def table(entries: Sequence[registry.Entry]) -> str:
    """The comparison of the mechanisms: one row per mechanism."""
    columns = ("mechanism", "paper", "heads", "time", "memory", "representation", "use it for", "supports")
    rows = []
    for name, c in ((e.name, e.card) for e in entries):
        source = (f"[{c.title}]({name}/README.md) `{name}`", f"{c.authors} {c.year}")
        rows.append((*source, c.heads, c.time, c.memory, c.representation, c.use_case, ", ".join(c.supports)))
    return f"{markdown.table(columns, rows)}\n\n{LEGEND} {OTHER_LETTERS}"


def overview(entries: Sequence[registry.Entry]) -> str:
    """The short table of the mechanisms, for the README of the project."""
    rows = [
        (f"[{c.title}](models/{name}/README.md)", f"`{name}`", f"{c.authors} {c.year}", c.summary, c.time, _decoding(c))
        for name, c in ((e.name, e.card) for e in entries)
    ]
    columns = ("mechanism", "`--model`", "paper", "what it does", "time", "decoding keeps")
    legend = f"{LEGEND} {OTHER_LETTERS}\nA mechanism marked – has no cache for decoding."
    return f"{markdown.table(columns, rows)}\n\n{legend}"


def _decoding(card: Card) -> str:
    """What decoding keeps of earlier tokens."""
    if "cache" not in card.supports:
        return "–"
    return "a constant state" if card.constant_state else "every token"


def badge(entry: registry.Entry) -> str:
    """One line for the top of a lesson: checks passed and distance to an independent implementation."""
    line = trust.badge(trust.read(entry.folder))
    return line or f"Not checked yet: run `attnlab check {entry.name} --record`."


def card(entry: registry.Entry) -> str:
    """A mechanism's card, as a table."""
    card = entry.card
    paper = f"[{card.paper}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.paper
    rows = [
        ("paper", f"{paper}, {card.authors} {card.year}" + (f", arXiv:{card.arxiv}" if card.arxiv else "")),
        ("kind", card.kind),
        ("heads", card.heads),
        ("time", card.time),
        ("memory", card.memory),
        ("representation", card.representation),
        *([("attention weights", WEIGHTS[card.weights])] if "weights" in card.supports else []),
        ("use it for", card.use_case),
        ("supports", "; ".join(f"**{name}** ({CAPABILITIES[name]})" for name in card.supports)),
        ("train it", f"`python main.py --model {entry.name}`"),
        ("check it", f"`attnlab check {entry.name}`"),
        ("see it", f"`attnlab explore {entry.name}`, which opens [this page]({EXPLORER}#source.model={entry.name})"),
    ]
    return f"{markdown.table((card.title, card.summary), rows)}\n\n{LEGEND}"


def family(entries: Sequence[registry.Entry]) -> str:
    """The family tree as a nested list: every mechanism below its parent.

    Raises:
        UserError: for a parent that is not a mechanism, or for a cycle.
    """
    cards = {e.name: e.card for e in entries}
    for name, card in cards.items():
        if card.parent and card.parent not in cards:
            raise UnknownNameError(f"parent of {name}", card.parent, cards)
    lines: list[str] = []

    def add_children(parent: str, depth: int) -> None:
        for name, card in cards.items():
            if card.parent == parent:
                lines.append(f"{'  ' * depth}- [{card.title}]({name}/README.md), {card.year}: {card.summary}")
                add_children(name, depth + 1)

    add_children("", 0)
    if len(lines) < len(cards):
        raise UserError("the parents in the cards form a cycle; one mechanism must have no parent")
    return "\n".join(lines)


def _growth(file: Path) -> dict[str, tuple[str, str]]:
    """The measured exponents of time and memory (``python -m benchmarks mechanisms``), as text."""
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    exponents: dict[str, dict[str, str]] = {}
    for row in rows:
        lengths, values = row["lengths"], row["values"]
        power = math.log(values[-1] / values[0]) / math.log(lengths[-1] / lengths[0])
        exponents.setdefault(row["case"], {})[row["quantity"]] = f"n^{power:.2f}"
    # Under masks and in training, only the memory is measured; these cases are in the results alone.
    return {name: (powers["time"], powers["peak memory"]) for name, powers in exponents.items() if "time" in powers}


def _page(path: Path, parts: Mapping[str, str]) -> Page:
    marks = {name: (f"<!-- {name} -->", f"<!-- /{name} -->") for name in parts}
    try:
        current = generated = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        opening, closing = next(iter(marks.values()))
        raise UserError(f"{path} is missing; write it with the lines {opening} and {closing} in it") from None
    for name, content in parts.items():
        opening, closing = marks[name]
        before, opened, rest = generated.partition(f"{opening}\n")
        _, closed, after = rest.partition(closing)
        if not opened or not closed:
            raise UserError(f"{path} lacks the marks of a generated part; add the lines {opening} and {closing}")
        generated = f"{before}{opened}{content}\n{closed}{after}"
    return Page(path, current, generated)
