"""The attention maps of the layers of a network, on the inputs that these layers get.

Axes: B batch, N length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.analysis.importance import layers_without
from attnlab.network import Network
from attnlab.nn.attention import Attention
from attnlab.ops.attention_map import AttentionMap
from attnlab.training.objective import eval_mode


@torch.no_grad()
def attention_maps(network: Network, x: Tensor, lengths: Tensor | None = None) -> dict[int, AttentionMap]:
    """Return the attention map of each layer that has one, by the index of the layer; see `without_weights`.

    Args:
        network: evaluated in eval mode; it is not changed.
        x: a batch, as `Network.forward` takes it.
        lengths: (B,) the numbers of real tokens.
    """
    maps: dict[int, AttentionMap] = {}

    def keep(index: int, layer: Attention, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        maps[index] = layer.attention_map(inputs[0], mask=options.get("mask"))

    with eval_mode(network), ExitStack() as stack:
        for i, layer in enumerate(network.mechanisms()):
            if _has_weights(layer):
                hook: Callable[..., None] = partial(keep, i)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        network(x, lengths)
    return maps


def without_weights(network: Network) -> str:
    """One line that names the layers without attention weights; empty if there is none."""
    layers = enumerate(network.mechanisms())
    return layers_without("attention weights", {i: layer for i, layer in layers if not _has_weights(layer)})


def _has_weights(layer: nn.Module) -> bool:
    return isinstance(layer, Attention) and layer.supports("weights")
