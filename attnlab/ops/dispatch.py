"""Which way a computation took, and why: told to whoever asks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attnlab.utils.tracing import may_check


@dataclass(frozen=True)
class Path:
    """One computation's way.

    Args:
        name: the way (``fused``, ``causal``, ``window`` ...).
        why: what decided for it.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


_listener: ContextVar[list[Path] | None] = ContextVar("attnlab_paths", default=None)


def record(path: Callable[[], Path]) -> None:
    """Record which way is taken. Its text is built only while `explain_path` collects it: building it reads tensors."""
    record_dispatch = _listener.get()
    if record_dispatch is not None:
        record_dispatch.append(path())


def can_inspect_values(x: Tensor) -> bool:
    """Whether a computation may be split by what the tensors hold. A tensor subclass may hold no values."""
    return may_check(x)


@contextmanager
def record_dispatch() -> Iterator[list[Path]]:
    """Collect the ways that are taken meanwhile, in order."""
    heard: list[Path] = []
    before = _listener.set(heard)
    try:
        yield heard
    finally:
        _listener.reset(before)


def explain_path(layer: nn.Module, x: Tensor, **given: Any) -> list[Path]:
    """Which way ``layer(x, **given)`` takes through the engines, and why; the call is made, its output dropped.

    What decides is all there: the mask, the bias, the mode (train or eval), whether a gradient is asked for.

    Args:
        layer: a mechanism, or a whole network.
        x: its input.
        given: what else it is called with (``mask=...``).

    Returns:
        A `Path` for each pass through an engine, in order; none for a layer that uses no engine.
    """
    with record_dispatch() as heard:
        layer(x, **given)
    return heard
