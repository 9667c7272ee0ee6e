"""Update the generated parts of the documentation: the index of mechanisms and the cards of the lessons."""

from __future__ import annotations

from dataclasses import dataclass

from attnlab.catalog import registry
from attnlab.cli._console import say
from attnlab.docs import generated
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to update."""

    check: bool = False
    """Write nothing; exit with code 1 if a page is out of date."""
    figures: bool = False
    """Also draw the figures of the lessons; this trains small networks and takes a minute."""


def run(options: Options) -> int:
    """Write the pages, or list those that are out of date."""
    if options.check and options.figures:
        raise UserError("--check writes nothing and --figures draws; give one of them")
    root = registry.checkout() or "."
    if options.check:
        stale = [page.path for page in generated.pages() if page.stale]
        for path in stale:
            say(f"out of date: {path.relative_to(root)} (update it with: attnlab docs)")
        return 1 if stale else 0
    written = generated.update()
    if options.figures:
        from attnlab.docs import lesson  # imports torch

        for name in registry.names():
            written += lesson.draw_figures(name)
    for path in written:
        say(f"written: {path.relative_to(root)}")
    if not written:
        say("every page is up to date")
    return 0
