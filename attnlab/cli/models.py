"""List the mechanisms, or say what one is."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

from rich.table import Table
from tyro.conf import Positional, arg

from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED
from attnlab.cli._console import Console, say
from attnlab.cli._parse import parse
from attnlab.cli._program import trainer
from attnlab.nn.card import CAPABILITIES
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to list."""

    name: Annotated[Positional[str], arg(metavar="[MODEL]")] = ""
    """One mechanism to describe; all are listed without it."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print the cards."""
    options = parse(Options, arguments, command="attnlab models", description="List the mechanisms.")
    found, broken = [], []
    for name in [options.name] if options.name else registry.names():
        try:
            found.append(registry.entry(name))
        except UserError as error:
            if options.name:
                raise
            broken.append(str(error))
    if options.json:
        say(json.dumps({e.name: asdict(e.card) for e in found}, indent=2, ensure_ascii=False))
    elif options.name:
        _describe(found[0])
    else:
        _list(found)
    for line in broken:
        say(f"left out: {line}", file=sys.stderr)
    return 0


def _list(entries: list[registry.Entry]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "time", "what it is"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for e in entries:
        table.add_row(e.name, e.card.time, e.card.summary)
    console = Console()
    console.print(table)
    console.print("\nn length, d embed_dim, h heads.  attnlab models NAME says more;", style="dim")
    console.print(f"{trainer()} --model NAME trains one.", style="dim")


def _describe(e: registry.Entry) -> None:
    card = e.card
    where = f", arXiv:{card.arxiv}" if card.arxiv else ""
    say(f"{card.title} ({e.name}): {card.summary}\n")
    say(f"  paper     {card.authors} {card.year}, {card.paper}{where}")
    say(f"  kind      {card.kind}")
    say(f"  time      {card.time}\n  memory    {card.memory}")
    say(f"  map       {card.representation}\n  use it    {card.use_case}")
    say("  supports  " + "\n            ".join(f"{c}: {CAPABILITIES.get(c, c)}" for c in card.supports))
    say("\n  options")
    for o in e.options:
        default = "required" if o.default is REQUIRED else f"default {o.default}"
        say(f"    {o.name:<12} {o.help} ({default})")
    say(f"\n  from attnlab.models.{e.name} import {e.class_name}")
