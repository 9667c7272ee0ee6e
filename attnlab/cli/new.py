"""Create models/NAME/ from the template: softmax attention with one head, to be edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.catalog import scaffold
from attnlab.cli._console import say
from attnlab.cli._invocation import program, trainer
from attnlab.docs import generated
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to create."""

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """The name of the mechanism: lower-case letters, digits and _, such as my_attention."""


def run(options: Options) -> int:
    """Write the folder and print the next steps."""
    name = options.name
    if not name:
        raise UserError("give the name of the new mechanism: attnlab new my_attention")
    scaffold.create(name)
    rows = {
        f"  {name}.py": "the mechanism: edit its formula, then its card",
        "  reference.py": "the same formula in plain PyTorch, which the tests compare with",
        "  README.md": "the lesson",
    }
    say(f"created models/{name}/: softmax attention with one head, which passes every check\n")
    for file, about in rows.items():
        say(f"{file:<24}{about}")
    try:
        generated.update([name])
        say("\nadded to models/README.md\n")
    except UserError as error:
        say(f"\nmodels/README.md was not updated: {error}\n")
    say(f"next:\n  {program()} check {name}\n  {trainer()} --model {name}")
    say(f"{'  attnlab docs':<24}after every change of the card")
    return 0
