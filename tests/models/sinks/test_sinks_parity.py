"""Attention with sinks against gpt-oss in transformers 5.24, and softmax off by one against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import TOLERANCE, assert_same, assert_same_gradients, padding_lengths, random
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.sinks import SinkAttention

ORACLES = {"test_gpt_oss": ("transformers", "GptOssAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 6)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])


def gpt_oss(H: int, d: int, dtype: torch.dtype) -> Any:
    """Their layer with nonzero biases, and with sinks of both signs."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    config = transformers.GptOssConfig(
        hidden_size=H * d,
        num_attention_heads=H,
        num_key_value_heads=H,
        head_dim=d,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = GptOssAttention(config, layer_idx=1).to(dtype)  # a layer without a window
    nn.init.normal_(layer.sinks, std=2)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        nn.init.normal_(projection.bias)
    return layer


def projections(theirs: Any, name: str) -> Tensor:
    """The weights or the biases of queries, keys and values, in one tensor."""
    return torch.cat([getattr(getattr(theirs, f"{part}_proj"), name) for part in "qkv"])


def compare(causal: bool, positions: Any, theirs: Any, B: int, N: int, H: int, padded: bool) -> None:
    dtype, atol, D = theirs.sinks.dtype, TOLERANCE[theirs.sinks.dtype], theirs.o_proj.out_features
    layer = SinkAttention(D, H, causal=causal, positions=positions).to(dtype)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(layer.qkv, name).copy_(projections(theirs, name))
        layer.output.load_state_dict(theirs.o_proj.state_dict())
        layer.sink.copy_(theirs.sinks)
    if positions == "rotary":
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

        rotation = GptOssRotaryEmbedding(theirs.config)(torch.zeros(1, N, D), torch.arange(N).unsqueeze(0))
    else:
        width = D // H // 2
        rotation = torch.ones(1, N, width, dtype=dtype), torch.zeros(1, N, width, dtype=dtype)
    a, b = (random(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    lengths, real = padding_lengths(B, N, padded)
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    allowed = allowed.tril() if causal else allowed
    blocked = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    expected, weights = theirs(a, rotation, blocked)
    mask = masks.padding(lengths) if padded else None
    ours = layer(b, mask=mask)
    assert_same(layer.attention_weights(b, mask=mask).transpose(1, 2)[real], weights.transpose(1, 2)[real], atol)
    assert_same_gradients(
        (ours[real], [b, layer.sink, *layer.output.parameters()]),
        (expected[real], [a, theirs.sinks, *theirs.o_proj.parameters()]),
    )
    direction = random(B, N, D, dtype=dtype)[real] / N
    (expected[real] * direction).sum().backward()
    (ours[real] * direction).sum().backward()
    for name in ("weight", "bias"):
        gradients = [getattr(getattr(theirs, f"{part}_proj"), name).grad for part in "qkv"]
        assert_same(getattr(layer.qkv, name).grad, torch.cat(gradients), atol)


@SHAPES
@CAUSAL
@PADDED
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gpt_oss(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    compare(causal, "none", gpt_oss(H, d, dtype), B, N, H, padded)


@SHAPES
@CAUSAL
def test_gpt_oss_with_rotary_positions(causal: bool, B: int, N: int, H: int, d: int) -> None:
    compare(causal, "rotary", gpt_oss(H, d, torch.float32), B, N, H, True)


@SHAPES
@CAUSAL
@PADDED
def test_softmax_off_by_one(padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    """``exp(s_ij) / (1 + Σ_j exp(s_ij))`` as Miller writes it."""
    torch.manual_seed(0)
    layer = SinkAttention(H * d, H, sink="zero", causal=causal).double()
    nn.init.normal_(layer.qkv.bias)
    x = random(B, N, H * d)
    lengths, real = padding_lengths(B, N, padded)
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    allowed = allowed.tril() if causal else allowed
    Q, K, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    powers = torch.exp(Q @ K.mT / math.sqrt(d)) * allowed
    heads = powers / (1 + powers.sum(-1, keepdim=True)) @ V
    expected = layer.output(heads.transpose(1, 2).flatten(2))[real]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)[real]
    parameters = [*layer.qkv.parameters(), *layer.output.parameters()]
    assert_same_gradients((ours, parameters), (expected, parameters))
