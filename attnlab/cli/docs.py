"""Bring the index of mechanisms and the heads of the lessons up to date."""

from __future__ import annotations

from dataclasses import dataclass

from attnlab.catalog import registry
from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.docs import generated
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to do."""

    check: bool = False
    """Write nothing; leave with 1 where a page no longer says what the cards say."""
    figures: bool = False
    """Draw the lessons' pictures too (this trains small networks: a minute)."""


def run(arguments: list[str]) -> int:
    """Write the pages, or say which are stale."""
    options = parse(
        Options,
        arguments,
        command="attnlab docs",
        description="Bring the index of mechanisms and the heads of the lessons up to date.",
    )
    if options.check and options.figures:
        raise UserError("--check writes nothing and --figures draws; give one of them")
    root = registry.checkout()
    if options.check:
        stale = [page.path for page in generated.pages() if page.stale]
        for path in stale:
            say(f"stale: {path.relative_to(root or '.')} (mend it with: attnlab docs)")
        return 1 if stale else 0
    done = generated.update()
    if options.figures:
        from attnlab.docs import lesson  # imports torch

        for name in registry.names():
            done += lesson.draw_figures(name)
    for path in done:
        say(f"written: {path.relative_to(root or '.')}")
    if not done:
        say("nothing was stale")
    return 0
