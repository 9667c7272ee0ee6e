"""Helpers of the conversions: separate projections to one fused projection, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from attnlab.nn.attention import copy_weights
from attnlab.nn.multihead import MultiHeadBase


def require(layer: Any, kind: type, name: str) -> None:
    """Raise TypeError for a layer of another class, and ValueError for cross-attention."""
    if not isinstance(layer, kind):
        raise TypeError(f"{name} takes a {kind.__name__}, got {type(layer).__name__}")
    if getattr(layer, "is_cross_attention", False):
        raise ValueError(
            f"this {kind.__name__} is cross-attention with its own keys; only self-attention can be converted"
        )


def require_equal(ours: MultiHeadBase, theirs: str, positions: str, **expected: Any) -> None:
    """Raise ValueError if an attribute of our layer, or its positions, differ from those of the other layer."""
    for name, value in expected.items():
        if (actual := getattr(ours, name)) != value:
            raise ValueError(f"{type(ours).__name__} has {name}={actual}, but the other layer has {value}")
    if ours.positions.name != positions:
        raise ValueError(f"{theirs} has {positions} positions inside attention, not {ours.positions.name}")


def load(ours: MultiHeadBase, theirs: Sequence[nn.Linear]) -> None:
    """Copy their query, key, value and output projections into our layer."""
    *qkv, output = theirs
    biases = tuple(layer.bias for layer in qkv if layer.bias is not None)
    weight = torch.cat(tuple(layer.weight for layer in qkv))
    copy_weights(ours.qkv, weight, torch.cat(biases) if biases else None)
    copy_weights(ours.output, output.weight, output.bias)


def store(ours: MultiHeadBase, theirs: Sequence[nn.Linear]) -> None:
    """Copy the parameters of our layer into their query, key, value and output projections."""
    *qkv, output = theirs
    biases = [None] * 3 if ours.qkv.bias is None else ours.qkv.bias.split(ours.qkv_sizes)
    for layer, weight, bias in zip(qkv, ours.qkv.weight.split(ours.qkv_sizes), biases, strict=True):
        copy_weights(layer, weight, bias)
    copy_weights(output, ours.output.weight, ours.output.bias)
