"""The registry of checks: functions of a layer under test that return one measured value."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attnlab.checks.capabilities import CAPABILITIES
from attnlab.utils.errors import UnknownNameError

if TYPE_CHECKING:
    from attnlab.checks.layer_under_test import LayerUnderTest


@dataclass(frozen=True)
class Measurement:
    """A measured value and the largest value that passes; NaN fails.

    ``detail`` describes where the value was measured and is shown with a failure.
    """

    value: float
    limit: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


Measure = Callable[["LayerUnderTest"], Measurement]
Values = Iterator[tuple[float, str]]
"""Measured values, each with where it was measured."""


@dataclass(frozen=True)
class Check:
    """A named check: the capabilities it needs, and the function that measures the layer."""

    name: str
    needs: tuple[str, ...]
    slow: bool
    doc: str
    measure: Measure


_REGISTERED: dict[str, Check] = {}

_FIRST = ("shapes", "leakage", "fully_masked", "weights", "reference", "gradients", "determinism")
"""The families at the top of a report; the others follow in alphabetical order."""


def largest(measured: Iterable[tuple[float, str]], limit: float) -> Measurement:
    """The largest of several values, or NaN if one is NaN; the detail is that of the first value above the limit."""
    value, detail = 0.0, ""
    for number, where in measured:
        if not number <= limit:
            detail = detail or where
        if math.isnan(number):
            return Measurement(number, limit, detail)
        value = max(value, number)
    return Measurement(value, limit, detail)


def check(
    name: str, *, needs: tuple[str, ...] = (), limit: float | Callable[[LayerUnderTest], float] = 0, slow: bool = False
) -> Callable[[Callable[[LayerUnderTest], Measurement | Values]], Callable[..., Any]]:
    """Register a function as a check of every attention layer.

    The function returns a `Measurement`, or it yields values, each with where it was measured.

    Args:
        name: an identifier, unique among the checks.
        needs: the capabilities (see `CAPABILITIES`) without which the check is not applicable.
        limit: the largest value that passes, if the function yields values; a number or a function of the layer.
        slow: takes seconds; skipped by ``fast``.

    Raises:
        ValueError: the name is taken.
        UnknownNameError: a capability does not exist.
    """
    for capability in needs:
        if capability not in CAPABILITIES:
            raise UnknownNameError("capability", capability, CAPABILITIES)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _REGISTERED:
            raise ValueError(f"a check named {name!r} exists already; choose another name")
        measure = function
        if inspect.isgeneratorfunction(function):

            def measure(case: LayerUnderTest) -> Measurement:
                return largest(function(case), limit(case) if callable(limit) else limit)

        _REGISTERED[name] = Check(name, needs, slow, (function.__doc__ or "").strip(), measure)
        return function

    return register


def all_checks() -> dict[str, Check]:
    """Every check by name: family by family, the slow ones last."""
    from attnlab.checks import families

    modules = {module.name for module in pkgutil.iter_modules(families.__path__)}
    for name in [*_FIRST, *sorted(modules - set(_FIRST))]:
        import_module(f"{families.__name__}.{name}")
    return dict(sorted(_REGISTERED.items(), key=lambda item: item[1].slow))
