"""The list of faulty layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plain import Plain

from attnlab.nn.attention import Attention

FAULTY: list[tuple[str, type[Attention]]] = []


def fails(*checks: str, replaces: str = "", base: type[Attention] = Plain) -> Callable[[Any], Any]:
    """Register a layer that must fail these checks: a class, or ``base`` with a function in place of one method."""

    def register(fault: Any) -> Any:
        layer = fault if isinstance(fault, type) else type(fault.__name__, (base,), {replaces: fault})
        FAULTY.extend((check, layer) for check in checks)
        return fault

    return register
