"""What is known of a peer beforehand: its layers, what they claim, and what of the rest is theirs to keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

EMPTY = "its documentation says nothing of an empty batch or sequence, and it raises"
NO_KEY = "its documentation says nothing of a token that may look at nothing"
COMMON = {
    "takes an empty batch or sequence": EMPTY,
    "empty rows give zeros": NO_KEY,
    "empty rows give finite gradients": NO_KEY,
}
"""Why no peer that fails in these is said to break them."""


@dataclass(frozen=True)
class Layer:
    """A layer as one asks for it.

    Args:
        kind: the class in the adapter.
        options: of its constructor.
        claims: what it claims, where the signatures of the adapter say too little.
        unclaimed: a promise that it does not keep, and why that is none of its own.
        broken: a promise that it breaks, and the reproduction that shows it.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    unclaimed: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the page shows it."""
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in self.options.items())})".replace("()", "")


@dataclass(frozen=True)
class Peer:
    """A package of others.

    Args:
        package: as pip names it.
        adapter: the module in ``peers.adapters``.
        module: what is imported of it.
        home: where its documentation is.
        asked: how the adapter asks, and the words of the documentation that it follows.
        layers: what is checked.
        known: what is said elsewhere about a reproduction.
        beside: reproductions of what the suite does not ask, and a line on each.
    """

    package: str
    adapter: str
    module: str
    home: str
    asked: str
    layers: tuple[Layer, ...]
    known: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> str | None:
        """Its version here, None where it is not there."""
        return version(self.package).partition("+")[0] if find_spec(self.module) else None

    def target(self, layer: Layer) -> Any:
        """What `check_attention` takes."""
        return partial(getattr(import_module(f"peers.adapters.{self.adapter}"), layer.kind), **layer.options)

    def command(self, layer: Layer) -> str:
        """The line that repeats a row."""
        words = ["attnlab check", f"peers.adapters.{self.adapter}:{layer.kind}", "--fast"]
        if layer.options:
            words += ["--args", *(f"{name}={value}" for name, value in layer.options.items())]
        return " ".join([*words, *(["--claims", *layer.claims] if layer.claims else [])])
