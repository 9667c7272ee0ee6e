"""What the conversions share: several projections of theirs as one of ours, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.nn.attention import copy_weights
from attnlab.nn.multihead import MultiHeadBase

Weights = tuple[Tensor, Tensor | None]
"""A weight (out, in), and a bias (out,)."""


def require(layer: Any, kind: type, name: str) -> None:
    """TypeError for another layer than the one that is converted."""
    if not isinstance(layer, kind):
        raise TypeError(f"{name} takes a {kind.__name__}, not a {type(layer).__name__}")


def require_same(ours: MultiHeadBase, **wanted: Any) -> None:
    """ValueError where a layer of ours is not of the form that theirs has."""
    for name, value in wanted.items():
        if (have := getattr(ours, name)) != value:
            raise ValueError(
                f"{type(ours).__name__} has {name}={have}, and theirs {value}; it cannot hold the same weights"
            )


def require_places(ours: MultiHeadBase, name: str, theirs: str) -> None:
    """ValueError for positions that theirs has not."""
    if ours.positions.name != name:
        raise ValueError(f"{theirs} has {name} positions inside of attention, not {ours.positions.name}")


def load(ours: MultiHeadBase, query: Weights, key: Weights, value: Weights, output: Weights) -> None:
    """Write their weights into ours."""
    biases = [bias for _, bias in (query, key, value) if bias is not None]
    copy_weights(ours.qkv, torch.cat([query[0], key[0], value[0]]), torch.cat(biases) if biases else None)
    copy_weights(ours.output, *output)


def parts(ours: MultiHeadBase) -> tuple[Weights, Weights, Weights, Weights]:
    """Our weights as theirs: query, key, value, output."""
    weights = ours.qkv.weight.split(ours.qkv_sizes)
    biases = (None,) * 3 if ours.qkv.bias is None else ours.qkv.bias.split(ours.qkv_sizes)
    query, key, value = zip(weights, biases, strict=True)
    return query, key, value, (ours.output.weight, ours.output.bias)
