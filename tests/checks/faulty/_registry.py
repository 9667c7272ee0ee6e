"""The list of faulty layers."""

from __future__ import annotations

from collections.abc import Callable

from attnlab.nn.attention import Attention

FAULTY: list[tuple[str, type[Attention]]] = []


def fails(*checks: str) -> Callable[[type[Attention]], type[Attention]]:
    """Register a class as one that must fail these checks."""

    def register(layer: type[Attention]) -> type[Attention]:
        FAULTY.extend((check, layer) for check in checks)
        return layer

    return register
