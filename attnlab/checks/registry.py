"""What a promise is, and where all of them are known: a function of a layer that measures one number."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from attnlab.checks.capabilities import CLAIMS
from attnlab.utils.errors import UnknownNameError

if TYPE_CHECKING:
    from attnlab.checks.layer import Subject


@dataclass(frozen=True)
class Measure:
    """The number that a check measured, and the largest that keeps the promise; NaN never does.

    ``detail`` says where it was measured, for whoever reads of a failure.
    """

    value: float
    limit: float
    detail: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Promise:
    """A named check: what a layer must claim to be held to it, and how it is measured."""

    name: str
    needs: tuple[str, ...]
    slow: bool
    doc: str
    measure: Callable[[Subject], Measure]


_KNOWN: dict[str, Promise] = {}

_FIRST = ("shapes", "leaks", "rows", "maps", "order", "reference", "gradients", "determinism")
"""The families that a table begins with; the others follow."""


def promise(
    name: str, *, needs: tuple[str, ...] = (), slow: bool = False
) -> Callable[[Callable[[Subject], Measure]], Callable[[Subject], Measure]]:
    """Make a function a promise of every attention layer.

    Args:
        name: as the table shows it.
        needs: the claims (see `CLAIMS`) without which a layer is not held to it.
        slow: takes seconds; left out by ``fast``.

    Raises:
        ValueError: for a name that is taken.
        UnknownNameError: for a claim that does not exist.
    """
    for claim in needs:
        if claim not in CLAIMS:
            raise UnknownNameError("claim", claim, CLAIMS)

    def register(measure: Callable[[Subject], Measure]) -> Callable[[Subject], Measure]:
        if name in _KNOWN:
            raise ValueError(f"there is a promise {name!r} already; give this one its own name")
        _KNOWN[name] = Promise(name, needs, slow, (measure.__doc__ or "").strip(), measure)
        return measure

    return register


def every_promise() -> dict[str, Promise]:
    """Every promise by its name: file by file, the slow ones last."""
    from attnlab.checks import families

    found = {module.name for module in pkgutil.iter_modules(families.__path__)}
    for name in [*_FIRST, *sorted(found - set(_FIRST))]:
        import_module(f"{families.__name__}.{name}")
    return dict(sorted(_KNOWN.items(), key=lambda item: item[1].slow))
