"""List the mechanisms, or describe one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED
from attnlab.cli._console import Console, plain_table, say
from attnlab.cli._invocation import trainer
from attnlab.nn.card import CAPABILITIES, WEIGHTS
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to list."""

    name: Annotated[Positional[str], arg(metavar="[MODEL]")] = ""
    """The mechanism to describe; all are listed by default."""
    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Print the cards."""
    entries = []
    for name in [options.name] if options.name else registry.names():
        try:
            entries.append(registry.entry(name))
        except UserError as error:
            if options.name:
                raise
            say(f"left out: {error}", file=sys.stderr)
    if options.json:
        say(json.dumps({e.name: asdict(e.card) for e in entries}, indent=2, ensure_ascii=False))
    elif options.name:
        _describe(entries[0])
    else:
        _list(entries)
    return 0


def _list(entries: list[registry.Entry]) -> None:
    table = plain_table("name", "time", "what it is", overflow="fold")
    table.columns[0].no_wrap = True
    for e in entries:
        table.add_row(e.name, e.card.time, e.card.summary)
    console = Console()
    console.print(table)
    console.print("\nn length, d embed_dim, h heads. attnlab models NAME describes one mechanism;", style="dim")
    console.print(f"{trainer()} --model NAME trains it.", style="dim")


def _describe(e: registry.Entry) -> None:
    card = e.card
    arxiv = f", arXiv:{card.arxiv}" if card.arxiv else ""
    say(f"{card.title} ({e.name}): {card.summary}\n")
    say(f"  paper     {card.authors} {card.year}, {card.paper}{arxiv}")
    say(f"  kind      {card.kind}")
    say(f"  time      {card.time}\n  memory    {card.memory}")
    say(f"  weights   {card.representation}\n            {WEIGHTS[card.weights]}\n  use it    {card.use_case}")
    say("  supports  " + "\n            ".join(f"{c}: {CAPABILITIES.get(c, c)}" for c in card.supports))
    say("\n  options")
    for option in e.options:
        default = "required" if option.default is REQUIRED else f"default {option.default}"
        say(f"    {option.name:<12} {option.help} ({default})")
    say(f"\n  from attnlab.models.{e.name} import {e.class_name}")
