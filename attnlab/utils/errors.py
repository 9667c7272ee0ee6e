"""Errors that the user can correct.

The message is one line that says what was given, what was expected and what to do. The command line prints it after
``error:`` and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

SIMILARITY_MARGIN = 0.15
"""How much less similar than the first suggestion the second may be."""


class UserError(Exception):
    """A mistake that the user can correct; the message is one line that says how."""


class UnknownNameError(UserError):
    """A name that does not exist; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one or two known names that are most similar, joined by *or*; empty if none is."""
    lower = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower(), list(lower), n=2, cutoff=0.6)
    ratios = [SequenceMatcher(None, candidate, name.lower()).ratio() for candidate in near]
    return " or ".join(
        lower[n] for n, ratio in zip(near, ratios, strict=True) if ratio >= ratios[0] - SIMILARITY_MARGIN
    )
