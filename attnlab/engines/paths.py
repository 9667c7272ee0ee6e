"""Which way a computation took, and why: told to whoever asks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attnlab.deciding import may_read


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


def tell(path: Callable[[], Path]) -> None:
    """Record which way is taken. Its text is built only while `explain_path` collects it: building it reads tensors."""
    listening = _listener.get()
    if listening is not None:
        listening.append(path())


def may_split(x: Tensor) -> bool:
    """Whether a computation may be split by what the tensors hold. A tensor subclass may hold no values."""
    return type(x) in (Tensor, nn.Parameter) and may_read(x.device)


@contextmanager
def listening() -> Iterator[list[Path]]:
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
    with listening() as heard:
        layer(x, **given)
    return heard
