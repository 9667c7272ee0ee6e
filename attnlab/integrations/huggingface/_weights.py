"""Helpers of the conversions: separate projections to one fused projection, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.nn.attention import copy_weights
from attnlab.nn.multihead import MultiHeadBase

Parameters = tuple[Tensor, Tensor | None]
"""A weight (out, in) and a bias (out,) of one projection."""


def require(layer: Any, kind: type, name: str) -> None:
    """Raise TypeError for a layer of another class."""
    if not isinstance(layer, kind):
        raise TypeError(f"{name} takes a {kind.__name__}, got {type(layer).__name__}")


def require_equal(ours: MultiHeadBase, **expected: Any) -> None:
    """Raise ValueError if an attribute of our layer differs from that of the other layer."""
    for name, value in expected.items():
        if (actual := getattr(ours, name)) != value:
            raise ValueError(f"{type(ours).__name__} has {name}={actual}, but the other layer has {value}")


def require_positions(ours: MultiHeadBase, name: str, theirs: str) -> None:
    """Raise ValueError if our layer has other positions than ``name``."""
    if ours.positions.name != name:
        raise ValueError(f"{theirs} has {name} positions inside attention, not {ours.positions.name}")


def load(ours: MultiHeadBase, query: Parameters, key: Parameters, value: Parameters, output: Parameters) -> None:
    """Copy their parameters into our layer."""
    biases = [bias for _, bias in (query, key, value) if bias is not None]
    copy_weights(ours.qkv, torch.cat([query[0], key[0], value[0]]), torch.cat(biases) if biases else None)
    copy_weights(ours.output, *output)


def projections(ours: MultiHeadBase) -> tuple[Parameters, Parameters, Parameters, Parameters]:
    """Return the parameters of our query, key, value and output projections."""
    weights = ours.qkv.weight.split(ours.qkv_sizes)
    biases = (None,) * 3 if ours.qkv.bias is None else ours.qkv.bias.split(ours.qkv_sizes)
    query, key, value = zip(weights, biases, strict=True)
    return query, key, value, (ours.output.weight, ours.output.bias)
