"""The mechanisms by their capabilities, for tests that need one."""

from __future__ import annotations

from attnlab.catalog import registry
from attnlab.nn.card import CAPABILITIES


def supporting(*capabilities: str) -> list[str]:
    """The names of the mechanisms that have all of these capabilities; there is at least one."""
    assert {*capabilities} <= CAPABILITIES.keys(), capabilities
    names = [name for name in registry.names() if {*capabilities} <= {*registry.entry(name).card.supports}]
    assert names
    return names
