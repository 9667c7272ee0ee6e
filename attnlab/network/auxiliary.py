"""The losses of the layers themselves, such as that of an indexer, collected while a network is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from attnlab.nn.mixer import SequenceMixer


@contextmanager
def auxiliary_losses(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the auxiliary loss of every layer that is called inside the block; most mechanisms have none."""
    losses: list[Tensor] = []

    def collect(layer: SequenceMixer, inputs: tuple[Any, ...], options: dict[str, Any], out: Tensor) -> None:
        loss = layer.auxiliary_loss(*inputs, mask=options.get("mask"), context=options.get("context"))
        if loss is not None:
            losses.append(loss)

    hooks = [
        layer.register_forward_hook(collect, with_kwargs=True)
        for layer in network.modules()
        if isinstance(layer, SequenceMixer) and type(layer).auxiliary_loss is not SequenceMixer.auxiliary_loss
    ]
    try:
        yield losses
    finally:
        for hook in hooks:
            hook.remove()
