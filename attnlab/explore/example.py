"""The trained network of the first view, and its file: ``python -m attnlab.explore.example`` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attnlab
from attnlab.catalog import registry
from attnlab.catalog.pattern import NETWORK_ARGUMENTS
from attnlab.catalog.source import REQUIRED
from attnlab.docs.example import train_example
from attnlab.network import Network
from attnlab.training.network_file import load_network, save_network

FILE = Path(__file__).with_name("example.safetensors")
MODEL, SEED = "multihead", 2
NUM_HEADS = 4
"""The default of the option ``num_heads``: the networks are 32 wide."""


def network(model: str, options: Mapping[str, Any]) -> tuple[Network, float]:
    """Return a network of `train_example` in eval mode, and its accuracy; that of the file without training."""
    resolved = with_defaults(model, options)
    if model == MODEL and resolved == with_defaults(MODEL, {}):
        shipped, about = load_network(FILE)
        return shipped, float(about["validation"])
    trained = train_example(model, seed=SEED, **resolved)
    return trained.network.eval(), trained.accuracy


def with_defaults(model: str, options: Mapping[str, Any], heads: int | None = NUM_HEADS) -> dict[str, Any]:
    """All options of a mechanism: those given, and the defaults of the others; ``heads`` is that of ``num_heads``."""
    known = {o.name: o.default for o in registry.entry(model).options if o.default is not REQUIRED}
    own = {name: value for name, value in known.items() if name not in NETWORK_ARGUMENTS}
    if heads is not None and "num_heads" in own:
        own["num_heads"] = heads
    return own | registry.current_names(model, options)


def write(path: Path = FILE) -> None:
    """Train the network of the file, and write it."""
    trained = train_example(MODEL, seed=SEED, **with_defaults(MODEL, {}))
    about = {"attnlab": attnlab.__version__, "step": trained.steps, "validation": trained.accuracy}
    save_network(path, trained.network, about)


if __name__ == "__main__":
    write()
