"""Attention with sinks against gpt-oss's in transformers 5.24, and softmax off by one against a loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.sinks import SinkAttention

ORACLES = {"test_gpt_oss": ("transformers", "GptOssAttention")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 6)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def same(found: Tensor | None, true: Tensor | None, atol: float) -> None:
    torch.testing.assert_close(found, true, rtol=0, atol=atol)


def gptoss(H: int, d: int, dtype: torch.dtype) -> Any:
    """Their layer, its biases off zero and its sinks of either sign."""
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


def joined(theirs: Any, what: Any) -> Tensor:
    return torch.cat([what(getattr(theirs, f"{part}_proj")) for part in "qkv"])


def ours_of(theirs: Any, H: int, d: int, **options: Any) -> SinkAttention:
    layer = SinkAttention(H * d, H, **options).to(theirs.sinks.dtype)
    with torch.no_grad():
        layer.qkv.weight.copy_(joined(theirs, lambda part: part.weight))
        layer.qkv.bias.copy_(joined(theirs, lambda part: part.bias))
        layer.output.load_state_dict(theirs.o_proj.state_dict())
        layer.sink.copy_(theirs.sinks)
    return layer


def compared(
    theirs: Any, layer: SinkAttention, B: int, N: int, padded: bool, turns: tuple[Tensor, Tensor], atol: float
) -> None:
    dtype = layer.sink.dtype
    a, b = (tokens(B, N, layer.embed_dim, dtype=dtype).requires_grad_() for _ in range(2))
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    real = torch.arange(N) < lengths[:, None]
    given = real[:, None, None, :].expand(B, 1, N, N)
    given = given.tril() if layer.causal else given
    blocked = torch.zeros(given.shape, dtype=dtype).masked_fill(~given, torch.finfo(dtype).min)
    wanted, maps = theirs(a, turns, blocked)
    wanted = wanted[real]
    mask = masks.padding(lengths) if padded else None
    ours = layer(b, mask=mask)[real]
    same(ours, wanted, atol)
    same(layer.attention_weights(b, mask=mask).transpose(1, 2)[real], maps.transpose(1, 2)[real], atol)
    wave = tokens(*ours.shape, dtype=dtype) / N
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, a.grad, atol)
    same(layer.sink.grad, theirs.sinks.grad, atol)
    same(layer.qkv.weight.grad, joined(theirs, lambda part: part.weight.grad), atol)
    same(layer.qkv.bias.grad, joined(theirs, lambda part: part.bias.grad), atol)
    for name in ("weight", "bias"):
        same(getattr(layer.output, name).grad, getattr(theirs.o_proj, name).grad, atol)


@SHAPES
@CAUSAL
@PADDED
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gpt_oss(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = gptoss(H, d, dtype)
    still = torch.ones(1, N, d // 2, dtype=dtype), torch.zeros(1, N, d // 2, dtype=dtype)
    compared(theirs, ours_of(theirs, H, d, causal=causal), B, N, padded, still, TOLERANCE[dtype])


@SHAPES
@CAUSAL
def test_gpt_oss_turned(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = gptoss(H, d, torch.float32)
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    turns = GptOssRotaryEmbedding(theirs.config)(torch.zeros(1, N, H * d), torch.arange(N).unsqueeze(0))
    compared(theirs, ours_of(theirs, H, d, causal=causal, positions="rotary"), B, N, True, turns, 1e-5)


def off_by_one(Q: Tensor, K: Tensor, V: Tensor, permitted: Tensor) -> Tensor:
    """``exp(s_ij) / (1 + Σ_j exp(s_ij))`` as Miller writes it, (B, H, N, d), with bare powers."""
    out = torch.zeros_like(Q)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, Q.shape[:3])).tolist():
        powers = {
            j: torch.exp((Q[b, h, i] * K[b, h, j]).sum() / math.sqrt(Q.shape[-1]))
            for j in range(K.shape[2])
            if permitted[b, i, j]
        }
        for j, power in powers.items():
            out[b, h, i] = out[b, h, i] + power / (1 + sum(powers.values())) * V[b, h, j]
    return out


@SHAPES
@CAUSAL
@PADDED
def test_softmax_off_by_one(padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    layer = SinkAttention(H * d, H, sink="zero", causal=causal).double()
    nn.init.normal_(layer.qkv.bias)
    x = tokens(B, N, H * d)
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    real = torch.arange(N) < lengths[:, None]
    permitted = real[:, None, :].expand(B, N, N)
    permitted = permitted.tril() if causal else permitted
    Q, K, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    wanted = layer.output(off_by_one(Q, K, V, permitted).transpose(1, 2).flatten(2))[real]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)[real]
    same(ours, wanted, 1e-10)
    wave = tokens(*ours.shape)
    parameters = [*layer.qkv.parameters(), *layer.output.parameters()]
    for mine, true in zip(
        torch.autograd.grad((ours * wave).sum(), parameters),
        torch.autograd.grad((wanted * wave).sum(), parameters),
        strict=True,
    ):
        same(mine, true, 1e-10)
