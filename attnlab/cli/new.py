"""Start a new mechanism: a folder that works, to be changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.catalog import scaffold
from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.cli._program import program, trainer
from attnlab.docs import generated
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to start."""

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """What it shall be called: lower-case letters, digits and _, such as my_attention."""


def run(arguments: list[str]) -> int:
    """Write the folder and say what to do with it."""
    name = parse(
        Options,
        arguments,
        command="attnlab new",
        description="Start a new mechanism: models/NAME/, one head of softmax attention that works, to be changed.",
    ).name
    if not name:
        raise UserError("name the new mechanism: attnlab new my_attention")
    scaffold.create(name)
    say(f"models/{name}/ is there: one head of softmax attention, which keeps every promise of its card\n")
    say(f"  {name}.py".ljust(24) + "the mechanism: change its formula, then its card")
    say("  reference.py".ljust(24) + "the same formula in slow plain lines: the truth in every test")
    say("  README.md".ljust(24) + "the lesson")
    try:
        generated.update([name])
        say("\nmodels/README.md lists it\n")
    except UserError as error:
        say(f"\nthe index was left as it is: {error}\n")
    say(f"next:\n  {program()} check {name}\n  {trainer()} --model {name}")
    say("  attnlab docs".ljust(24) + "after every change of the card")
    return 0
