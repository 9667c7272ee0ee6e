"""Gated attention against that of Qwen3-Next in transformers 5.24.

Theirs also norms queries and keys, which the paper does not: the norms are taken out, or put into ours. Its q_proj
holds the query and the gate of a head, one after the other.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.gated import GatedAttention
from attnlab.nn.multihead import QKNorm

ORACLES = {"test_": ("transformers", "Qwen3NextAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 8)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])


def qwen(H: int, d: int, attention: str, dtype: torch.dtype, *, norms: bool = False) -> Any:
    """Their layer, its biases off zero."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    config = transformers.Qwen3NextConfig(
        hidden_size=H * d,
        num_attention_heads=H,
        num_key_value_heads=H,
        head_dim=d,
        attention_bias=True,
        partial_rotary_factor=0.5,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    layer = Qwen3NextAttention(config, layer_idx=0).to(dtype)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        nn.init.normal_(projection.bias)
    for norm in ("q_norm", "k_norm"):
        if norms:
            nn.init.normal_(getattr(layer, norm).weight)
        else:
            setattr(layer, norm, nn.Identity())
    return layer


class NormedGatedAttention(GatedAttention):
    """With queries and keys of one length."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.norm = QKNorm(self.head_dim)

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return *self.norm(Q, K), V


def rows(theirs: Any, d: int, what: Any) -> tuple[Tensor, Tensor]:
    """Their rows of queries, keys and values, and those of the gate."""
    queries, gate = what(theirs.q_proj).unflatten(0, (-1, 2, d)).unbind(1)
    queries, gate = queries.flatten(0, 1), gate.flatten(0, 1)
    return torch.cat([queries, what(theirs.k_proj), what(theirs.v_proj)]), gate


def weight(part: Any) -> Tensor:
    return part.weight


def bias(part: Any) -> Tensor:
    return part.bias


def copied(theirs: Any, layer: Any, gates: slice = slice(None)) -> Any:
    """Ours with their weights, and of their gates these."""
    layer = layer.to(theirs.o_proj.weight.dtype)
    with torch.no_grad():
        for name, what in (("weight", weight), ("bias", bias)):
            qkv, gate = rows(theirs, theirs.head_dim, what)
            getattr(layer.qkv, name).copy_(qkv)
            getattr(layer.gate.projection, name).copy_(gate[gates])
        layer.output.load_state_dict(theirs.o_proj.state_dict())
        if isinstance(layer, NormedGatedAttention):
            layer.norm.query.weight.copy_(1 + theirs.q_norm.weight)
            layer.norm.key.weight.copy_(1 + theirs.k_norm.weight)
    return layer


def still(N: int, d: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles of zero."""
    return torch.ones(1, N, d, dtype=dtype), torch.zeros(1, N, d, dtype=dtype)


def compared(
    theirs: Any, layer: Any, B: int, N: int, padded: bool, atol: float, turns: tuple[Tensor, Tensor] | None = None
) -> None:
    """Outputs and gradients; the gate's, where one gate stands for a head, is the sum of theirs."""
    d, dtype = layer.head_dim, layer.qkv.weight.dtype
    x = torch.randn(B, N, layer.embed_dim, generator=torch.Generator().manual_seed(N), dtype=torch.float64).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    real = torch.arange(N) < lengths[:, None]
    given = real[:, None, None, :].expand(B, 1, N, N)
    given = given.tril() if layer.causal else given
    blocked = torch.zeros(given.shape, dtype=dtype).masked_fill(~given, torch.finfo(dtype).min)
    wanted = theirs(a, still(N, d, dtype) if turns is None else turns, blocked)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]

    def same(found: Tensor, true: Tensor) -> None:
        torch.testing.assert_close(found, true, rtol=0, atol=atol)

    same(ours, wanted)
    wave = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) / N
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, a.grad)
    for name in ("weight", "bias"):
        qkv, gate = rows(theirs, d, lambda part, name=name: getattr(part, name).grad)
        same(getattr(layer.qkv, name).grad, qkv)
        same(getattr(layer.gate.projection, name).grad, gate.unflatten(0, (-1, d // layer.gate.width)).sum(1))
        same(getattr(layer.output, name).grad, getattr(theirs.o_proj, name).grad)
    if isinstance(layer, NormedGatedAttention):
        same(layer.norm.query.weight.grad, theirs.q_norm.weight.grad)
        same(layer.norm.key.weight.grad, theirs.k_norm.weight.grad)


@SHAPES
@CAUSAL
@PADDED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_qwen3_next(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", dtype)  # its softmax is of float32, always
    compared(theirs, copied(theirs, GatedAttention(H * d, H, causal=causal)), B, N, padded, 1e-5)


@SHAPES
@CAUSAL
@PADDED
def test_in_float64_to_the_end(padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "sdpa", torch.float64)
    compared(theirs, copied(theirs, GatedAttention(H * d, H, causal=causal)), B, N, padded, 1e-10)


@SHAPES
@CAUSAL
def test_one_gate_a_head_is_theirs_with_all_gates_of_a_head_alike(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "sdpa", torch.float64)
    with torch.no_grad():
        for what in (weight, bias):
            gate = what(theirs.q_proj).unflatten(0, (-1, 2, d))[:, 1]
            gate.copy_(gate[:, :1].expand_as(gate).clone())
    layer = copied(theirs, GatedAttention(H * d, H, gate="headwise", causal=causal), slice(None, None, d))
    compared(theirs, layer, B, N, True, 1e-10)


@SHAPES
@CAUSAL
def test_with_their_norms(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", torch.float32, norms=True)
    compared(theirs, copied(theirs, NormedGatedAttention(H * d, H, causal=causal)), B, N, True, 1e-5)


@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (3, 5, 5, 8)])
@CAUSAL
def test_with_half_of_each_head_turned(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = qwen(H, d, "eager", torch.float32)
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRotaryEmbedding

    turns = Qwen3NextRotaryEmbedding(theirs.config)(torch.zeros(1, N, H * d), torch.arange(N).unsqueeze(0))
    assert turns[0].shape[-1] == d // 2
    layer = GatedAttention(H * d, H, causal=causal, positions="rotary(rotary_fraction=0.5)")
    compared(theirs, copied(theirs, layer), B, N, True, 1e-5, turns)
