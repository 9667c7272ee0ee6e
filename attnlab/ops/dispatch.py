"""Which backend a computation used, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Dispatch:
    """The backend that was chosen for one computation.

    Args:
        name: of the backend (``fused``, ``causal``, ``window`` ...).
        why: the reason for the choice.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


_records: ContextVar[list[Dispatch] | None] = ContextVar("attnlab_dispatch", default=None)


def record(dispatch: Callable[[], Dispatch | None]) -> None:
    """Record a dispatch inside of `record_dispatch`. The text is built only then, because building it reads tensors."""
    records = _records.get()
    if records is not None and (made := dispatch()) is not None:
        records.append(made)


@contextmanager
def record_dispatch() -> Iterator[list[Dispatch]]:
    """Collect the backends that are chosen inside the block, in order."""
    records: list[Dispatch] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def explain_path(layer: nn.Module, x: Tensor, **options: Any) -> list[Dispatch]:
    """Return the backends that ``layer(x, **options)`` uses, and why; the call is made, its output discarded.

    The choice depends on the mask, the bias, the mode (train or eval) and whether gradients are needed.

    Args:
        layer: a mechanism, or a whole network.
        x: its input.
        options: further arguments of the call (``mask=...``).

    Returns:
        A `Dispatch` for each call of an op, in order; empty for a layer that uses none.
    """
    with record_dispatch() as records:
        layer(x, **options)
    return records
