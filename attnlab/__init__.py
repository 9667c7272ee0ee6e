"""Attention mechanisms that one can trust, train, compare and ship.

Importing this package is instant: torch is imported by the first thing that needs it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnlab.checks import check_attention
    from attnlab.network import Network
    from attnlab.nn.attention import Attention, Card
    from attnlab.nn.cache import KVCache
    from attnlab.ops.dispatch import explain_path
    from attnlab.training.runs import load

__version__ = "0.1.0"
__all__ = ["Attention", "Card", "KVCache", "Network", "__version__", "check_attention", "explain_path", "load", "masks"]

# In a checkout the mechanisms stand in models/ beside this folder; in a wheel they are attnlab/models.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_HOME = {
    "Attention": "attnlab.nn.attention",
    "KVCache": "attnlab.nn.cache",
    "Card": "attnlab.nn.attention",
    "Network": "attnlab.network",
    "check_attention": "attnlab.checks",
    "explain_path": "attnlab.ops.dispatch",
    "load": "attnlab.training.runs",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name == "masks":
        return import_module("attnlab.masks")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'attnlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
