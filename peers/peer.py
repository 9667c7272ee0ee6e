"""The description of a package and its layers: how they are called, and which failures are expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

EMPTY = "its documentation does not mention an empty batch or sequence, and it raises"
FULLY_MASKED = "its documentation does not mention a fully masked row"
COMMON = {
    "empty_input": EMPTY,
    "fully_masked_rows_are_zero": FULLY_MASKED,
    "fully_masked_rows_have_finite_gradients": FULLY_MASKED,
}
"""Checks whose failure counts for no package, and the reason."""


@dataclass(frozen=True)
class Layer:
    """A layer of a package.

    Args:
        kind: the class in the adapter.
        options: of its constructor.
        capabilities: those that the signatures of the adapter do not show.
        undocumented: checks that it fails without contradicting its documentation, and the reason.
        failing: checks that it fails, and the reproduction that shows it.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    undocumented: dict[str, str] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name on the page."""
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in self.options.items())})".replace("()", "")


@dataclass(frozen=True)
class Peer:
    """A package.

    Args:
        package: the name that pip uses.
        home: the address of its documentation.
        usage: how the adapter calls it, with quotations from the documentation.
        layers: the layers that are checked.
        known: where a reproduction is reported elsewhere.
        beside: reproductions of errors that no check covers, and a line on each.
        adapter: the module in ``peers.adapters``, if it is not called as the package.
    """

    package: str
    home: str
    usage: str
    layers: tuple[Layer, ...]
    known: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    adapter: str = ""

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        return self.package.replace("-", "_")

    @property
    def adapters(self) -> str:
        """The module with its adapters."""
        return f"peers.adapters.{self.adapter or self.module}"

    @property
    def installed(self) -> str | None:
        """The installed version, None if there is none."""
        return version(self.package).partition("+")[0] if find_spec(self.module) else None

    def target(self, layer: Layer) -> Any:
        """The target for `check_attention`."""
        return partial(getattr(import_module(self.adapters), layer.kind), **layer.options)

    def command(self, layer: Layer) -> str:
        """The command that repeats a row."""
        words = ["attnlab check", f"{self.adapters}:{layer.kind}", "--fast"]
        if layer.options:
            words += ["--args", *(f"{name}={value}" for name, value in layer.options.items())]
        return " ".join([*words, *(["--capabilities", *layer.capabilities] if layer.capabilities else [])])
