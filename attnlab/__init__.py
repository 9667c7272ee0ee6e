"""Tested, trainable attention mechanisms for PyTorch.

Importing this package takes no time: torch is imported by the first name that needs it. Every mechanism is available
here by its class name, as in ``attnlab.MultiAttention``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.catalog.spelling import SpellingFinder

if TYPE_CHECKING:
    from attnlab import _mechanisms
    from attnlab._mechanisms import *  # noqa: F403
    from attnlab.checks import check_attention
    from attnlab.network import Network
    from attnlab.nn.attention import Attention, Card
    from attnlab.nn.cache import KVCache
    from attnlab.ops.dispatch import explain_path
    from attnlab.training.runs import load

__version__ = "0.1.0"
__all__ = [
    "Attention",
    "Card",
    "KVCache",
    "Network",
    "__version__",
    "check_attention",
    "explain_path",
    "load",
    "masks",
    "ops",
]
if TYPE_CHECKING:
    __all__ += _mechanisms.__all__

# In a checkout the mechanisms are in models/ beside this folder; in a wheel they are attnlab/models.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_MODULES = {
    "Attention": "attnlab.nn.attention",
    "KVCache": "attnlab.nn.cache",
    "Card": "attnlab.nn.attention",
    "Network": "attnlab.network",
    "check_attention": "attnlab.checks",
    "explain_path": "attnlab.ops.dispatch",
    "load": "attnlab.training.runs",
}


def __getattr__(name: str) -> Any:
    """Import a public name or a mechanism when it is first used."""
    from attnlab.catalog import spelling
    from attnlab.utils.extras import needed_by

    if name in ("masks", "ops"):
        return import_module(f"attnlab.{name}")
    module = _MODULES.get(name)
    if module is None and name[:1].isupper() and name in (classes := spelling.mechanisms()):
        module = f"attnlab.models.{classes[name]}"
    if module is None:
        hint = spelling.hint("attnlab", name)
        raise AttributeError(f"module 'attnlab' has no attribute {name!r}{hint and f'; {hint}'}")
    with needed_by(f"attnlab.{name}"):
        return getattr(import_module(module), name)


def __dir__() -> list[str]:
    from attnlab.catalog.spelling import mechanisms

    return sorted([*__all__, *mechanisms()])


sys.meta_path.append(SpellingFinder())
