"""What the conversions share: several projections of theirs as one of ours, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnlab.heads import HeadedAttention

Weights = tuple[Tensor, Tensor | None]
"""A weight (out, in), and a bias (out,)."""


def require(layer: Any, kind: type, name: str) -> None:
    """TypeError for another layer than the one that is converted."""
    if not isinstance(layer, kind):
        raise TypeError(f"{name} takes a {kind.__name__}, not a {type(layer).__name__}")


def require_same(ours: HeadedAttention, **wanted: Any) -> None:
    """ValueError where a layer of ours is not of the form that theirs has."""
    for name, value in wanted.items():
        if (have := getattr(ours, name)) != value:
            raise ValueError(
                f"{type(ours).__name__} has {name}={have}, and theirs {value}; it cannot hold the same weights"
            )


def require_places(ours: HeadedAttention, name: str, theirs: str) -> None:
    """ValueError for positions that theirs has not."""
    if ours.positions.name != name:
        raise ValueError(f"{theirs} has {name} positions inside of attention, not {ours.positions.name}")


def load(ours: HeadedAttention, query: Weights, key: Weights, value: Weights, output: Weights) -> None:
    """Write their weights into ours."""
    biases = [bias for _, bias in (query, key, value) if bias is not None]
    _copy(ours.qkv, torch.cat([query[0], key[0], value[0]]), torch.cat(biases) if biases else None)
    _copy(ours.output, *output)


def parts(ours: HeadedAttention) -> tuple[Weights, Weights, Weights, Weights]:
    """Our weights as theirs: query, key, value, output."""
    own = ours.num_heads * ours.head_dim
    shared = ours.num_kv_heads * ours.head_dim
    weights = ours.qkv.weight.split([own, shared, shared])
    biases = (None,) * 3 if ours.qkv.bias is None else ours.qkv.bias.split([own, shared, shared])
    query, key, value = zip(weights, biases, strict=True)
    return query, key, value, (ours.output.weight, ours.output.bias)


def store(layer: nn.Linear, weights: Weights) -> None:
    """Write our weights into a projection of theirs."""
    _copy(layer, *weights)


def _copy(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
