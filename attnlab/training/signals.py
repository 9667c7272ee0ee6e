"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StoppedError(KeyboardInterrupt):
    """Raised at a signal that asks to stop; no ``except Exception`` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP; a second one has its previous effect.

    An ignored signal stays ignored (``nohup``, or a background job of a script). Outside of the main thread, where
    Python allows no handlers, nothing is collected.
    """
    received: list[int] = []

    def collect(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    with _handling(collect) as before:
        yield received


@contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `StoppedError` at the same signals."""

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(number)

    with _handling(stop):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Install a handler inside the context; yields the previous handlers."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handlers = {number: signal.getsignal(number) for number in numbers}  # Windows has no SIGHUP
        before = {number: old for number, old in handlers.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)
