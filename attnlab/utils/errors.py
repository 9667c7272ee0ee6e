"""What went wrong because of what was asked: one clear line, never a traceback.

Every message says what was given, what was expected and what to do. The command line prints it after
``error:`` and leaves with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

AS_NEAR = 0.15
"""How much less like it the second name may be."""


class UserError(Exception):
    """A mistake that the user can mend; the message is one line that says how."""


class UnknownNameError(UserError):
    """A name that does not exist, with the nearest that do."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        known = list(known)
        near = nearest(given, known)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
        super().__init__(f"unknown {kind} {given!r}; {hint}")


def nearest(given: str, known: Iterable[str]) -> str:
    """The one or two names that ``given`` may have meant, joined by *or*; empty where none is near."""
    near = get_close_matches(given.lower(), list(known), n=2, cutoff=0.6)
    likeness = [SequenceMatcher(None, name, given.lower()).ratio() for name in near]
    return " or ".join(n for n, like in zip(near, likeness, strict=True) if like >= likeness[0] - AS_NEAR)
