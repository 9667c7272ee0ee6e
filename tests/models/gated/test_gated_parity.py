"""Gated attention against that of Qwen3-Next in transformers 5.24.

Theirs also normalizes queries and keys, which the paper does not: the norms are removed, or added to ours. Its q_proj
holds the query and the gate of a head, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    assert_parity_with_transformers,
    from_transformers,
    no_rotation,
    rotation_of,
)
from torch import Tensor, nn

from attnlab.models.gated import GatedAttention
from attnlab.nn.multihead import QKNorm

ORACLES = {"test_": ("transformers", "Qwen3NextAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 8)])


def qwen(H: int, d: int, attention: str, dtype: torch.dtype, *, norms: bool = False) -> Any:
    sizes = {"hidden_size": H * d, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": d}
    options = {"attention_bias": True, "partial_rotary_factor": 0.5, "attn_implementation": attention}
    layer = from_transformers("qwen3_next", "Qwen3Next", dtype, **sizes, **options)
    for name in ("q_norm", "k_norm"):
        if norms:
            nn.init.normal_(getattr(layer, name).weight)
        else:
            setattr(layer, name, nn.Identity())
    return layer


class NormedGatedAttention(GatedAttention):
    """With normalized queries and keys."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.norm = QKNorm(self.head_dim)

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return *self.norm(Q, K), V


def compare(layer: Any, theirs: Any, B: int, N: int, padded: bool, atol: float, rotation: Any = None) -> None:
    """Where one gate serves a head, their gates of a head are equal, and its gradient is the sum of theirs."""
    d, dtype = layer.head_dim, theirs.o_proj.weight.dtype
    layer = layer.to(dtype)

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        found = [(read(p), read(getattr(theirs.o_proj, name))) for name, p in layer.output.named_parameters()]
        for name, p in layer.qkv.named_parameters():
            parts = [getattr(getattr(theirs, f"{part}_proj"), name) for part in "qkv"]
            query, key, value = map(read, parts)
            queries, gates = query.unflatten(0, (-1, 2, d)).unbind(1)
            gates = gates.flatten(0, 1).unflatten(0, (-1, d // layer.gate.width))
            of_heads = gates[:, 0] if query is parts[0] else gates.sum(1)  # values, or gradients
            found.append((read(p), torch.cat([queries.flatten(0, 1), key, value])))
            found.append((read(getattr(layer.gate.projection, name)), of_heads))
        if isinstance(layer, NormedGatedAttention):
            norms = (layer.norm.query, theirs.q_norm), (layer.norm.key, theirs.k_norm)
            for own, other in norms:
                gain = read(other.weight)
                found.append((read(own.weight), gain + 1 if gain is other.weight else gain))  # theirs are 1 + weight
        return found

    rotation = no_rotation(N, d, dtype) if rotation is None else rotation
    assert_parity_with_transformers(layer, theirs, (B, N), padded, rotation, atol, pairs=pairs)


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_qwen3_next(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", dtype)  # its softmax is always float32
    compare(GatedAttention(H * d, H, causal=causal), theirs, B, N, padded, 1e-5)


@SHAPES
@CAUSAL
@PADDED
def test_in_float64(padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "sdpa", torch.float64)
    compare(GatedAttention(H * d, H, causal=causal), theirs, B, N, padded, 1e-10)


@SHAPES
@CAUSAL
def test_one_gate_per_head_equals_theirs_with_equal_gates(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "sdpa", torch.float64)
    with torch.no_grad():
        for parameter in theirs.q_proj.parameters():
            gate = parameter.unflatten(0, (-1, 2, d))[:, 1]
            gate.copy_(gate[:, :1].expand_as(gate).clone())
    compare(GatedAttention(H * d, H, gate="headwise", causal=causal), theirs, B, N, True, 1e-10)


@SHAPES
@CAUSAL
def test_with_their_norms(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", torch.float32, norms=True)
    compare(NormedGatedAttention(H * d, H, causal=causal), theirs, B, N, True, 1e-5)


@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (3, 5, 5, 8)])
@CAUSAL
def test_with_half_of_each_head_rotated(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", torch.float32)
    rotation = rotation_of(theirs, N)
    assert rotation[0].shape[-1] == d // 2
    layer = GatedAttention(H * d, H, causal=causal, positions="rotary(rotary_fraction=0.5)")
    compare(layer, theirs, B, N, True, 1e-5, rotation)
