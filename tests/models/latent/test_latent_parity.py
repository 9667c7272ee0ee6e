"""Latent attention against DeepSeek-V3's in transformers 5.24.

Their norms are always float32; for the comparisons in float64 they are replaced by those of PyTorch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brute import lengths_of, tokens
from torch import Tensor, nn

from attnlab import KVCache, masks
from attnlab.models.latent import LatentAttention

ORACLES = {"test_": ("transformers", "DeepseekV3Attention")}
SIZES = pytest.mark.parametrize(
    ("B", "N", "H", "d_k", "d_r", "d_c", "d_q", "D"),
    [(2, 13, 3, 5, 4, 7, None, 11), (1, 17, 2, 3, 2, 13, 5, 7), (3, 7, 5, 2, 6, 3, None, 23)],
)
INTERLEAVED = pytest.mark.parametrize("interleaved", [True, False])


def deepseek(
    H: int, d_k: int, d_r: int, d_c: int, d_q: int | None, D: int, interleaved: bool, dtype: torch.dtype, **rope: Any
) -> Any:
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        q_lora_rank=d_q,
        kv_lora_rank=d_c,
        qk_rope_head_dim=d_r,
        qk_nope_head_dim=d_k,
        v_head_dim=d_k,
        rope_interleave=interleaved,
        max_position_embeddings=64,
        attn_implementation="sdpa",
        **rope,
    )
    torch.manual_seed(0)
    layer = DeepseekV3Attention(config, layer_idx=0).to(dtype)
    for norm in (layer.kv_a_layernorm, layer.q_a_layernorm):
        if norm is not None:
            nn.init.normal_(norm.weight, 1.0, 0.2)
    return layer, DeepseekV3RotaryEmbedding(config)


YARN = {"scaling": "yarn", "factor": 4, "original": 16}


def yarn(mscale: float) -> dict[str, Any]:
    """The settings of DeepSeek: with both values equal, the whole score is scaled, not the cosines and sines."""
    settings = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    return {"rope_parameters": {**settings, "mscale": mscale, "mscale_all_dim": mscale}}


def ours_of(theirs: Any, interleaved: bool, settings: dict[str, Any] | None = None, **options: Any) -> LatentAttention:
    c, rope = theirs.config, {"layout": "interleaved" if interleaved else "half"}
    layer = LatentAttention(
        c.hidden_size,
        c.num_attention_heads,
        kv_latent_dim=c.kv_lora_rank,
        q_latent_dim=c.q_lora_rank,
        head_dim=c.qk_nope_head_dim,
        rope_head_dim=c.qk_rope_head_dim,
        causal=True,
        positions=f"rotary({', '.join(f'{name}={value}' for name, value in {**rope, **(settings or {})}.items())})",
        **options,
    ).to(theirs.o_proj.weight.dtype)
    with torch.no_grad():
        for own, part in pairs(layer, theirs):
            own.copy_(part(theirs))
    return layer


def pairs(layer: LatentAttention, theirs: Any, of: str = "data") -> list[tuple[Tensor, Any]]:
    """Our parameters, each with the function that reads the same tensor from their layer."""
    H, d_k = layer.num_heads, layer.head_dim

    def up(peer: Any) -> Tensor:  # a head's keys and then its values; ours are the keys of all heads first
        weight = getattr(peer.kv_b_proj.weight, of)
        return weight.unflatten(0, (H, 2, d_k)).transpose(0, 1).flatten(0, 2)

    found = [
        (layer.kv_down.weight, lambda peer: getattr(peer.kv_a_proj_with_mqa.weight, of)),
        (layer.kv_norm.weight, lambda peer: getattr(peer.kv_a_layernorm.weight, of)),
        (layer.kv_up.weight, up),
        (layer.output.weight, lambda peer: getattr(peer.o_proj.weight, of)),
    ]
    if layer.q_down is None or layer.q_norm is None:
        return [*found, (layer.query.weight, lambda peer: getattr(peer.q_proj.weight, of))]
    return [
        *found,
        (layer.q_down.weight, lambda peer: getattr(peer.q_a_proj.weight, of)),
        (layer.q_norm.weight, lambda peer: getattr(peer.q_a_layernorm.weight, of)),
        (layer.query.weight, lambda peer: getattr(peer.q_b_proj.weight, of)),
    ]


def cos_sin_of(rotary: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = rotary(x.double(), torch.arange(x.shape[1]).unsqueeze(0))
    return cos.to(x.dtype), sin.to(x.dtype)


def exact_cos_sin(d_r: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines and sines in float64; theirs are float32."""
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(0, d_r, 2, dtype=torch.float64) / d_r)
    angles = torch.cat([angles, angles], -1).unsqueeze(0)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def compare(theirs: Any, layer: LatentAttention, B: int, N: int, padded: bool, cos_sin: Any, atol: float) -> None:
    dtype = layer.kv_down.weight.dtype
    a, b = (tokens(B, N, layer.embed_dim, dtype=dtype).requires_grad_() for _ in range(2))
    lengths = lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    allowed = real[:, None, None, :] & torch.ones(N, N, dtype=torch.bool).tril()
    blocked = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    expected = theirs(a, cos_sin(a), blocked)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)
    direction = tokens(*ours.shape, dtype=dtype)
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=atol)
    for own, part in pairs(layer, theirs, "grad"):
        scale = 1 + part(theirs).abs()
        torch.testing.assert_close(own.grad / scale, part(theirs) / scale, rtol=0, atol=atol)


@SIZES
@INTERLEAVED
@pytest.mark.parametrize("padded", [True, False])
def test_deepseek(
    B: int, N: int, H: int, d_k: int, d_r: int, d_c: int, d_q: int | None, D: int, interleaved: bool, padded: bool
) -> None:
    theirs, rotary = deepseek(H, d_k, d_r, d_c, d_q, D, interleaved, torch.float32)
    compare(theirs, ours_of(theirs, interleaved), B, N, padded, lambda x: cos_sin_of(rotary, x), 1e-5)


@SIZES
@INTERLEAVED
@pytest.mark.parametrize("padded", [True, False])
def test_deepseek_in_float64(
    B: int, N: int, H: int, d_k: int, d_r: int, d_c: int, d_q: int | None, D: int, interleaved: bool, padded: bool
) -> None:
    theirs = with_exact_norms(deepseek(H, d_k, d_r, d_c, d_q, D, interleaved, torch.float64)[0])
    compare(theirs, ours_of(theirs, interleaved), B, N, padded, lambda x: exact_cos_sin(d_r, x), 1e-10)


def with_exact_norms(theirs: Any) -> Any:
    for name in ("kv_a_layernorm", "q_a_layernorm"):
        if (norm := getattr(theirs, name)) is not None:
            exact = nn.RMSNorm(len(norm.weight), eps=1e-6, dtype=torch.float64)
            exact.load_state_dict(norm.state_dict())
            setattr(theirs, name, exact)
    return theirs


@SIZES
@INTERLEAVED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_yarn_scales_the_whole_score(
    B: int, N: int, H: int, d_k: int, d_r: int, d_c: int, d_q: int | None, D: int, interleaved: bool, dtype: torch.dtype
) -> None:
    theirs, rotary = deepseek(H, d_k, d_r, d_c, d_q, D, interleaved, dtype, **yarn(1.0))
    theirs = with_exact_norms(theirs) if dtype == torch.float64 else theirs
    layer = ours_of(theirs, interleaved, YARN)
    assert layer.positions.attention_factor > 1.1

    def cos_sin(x: Tensor) -> tuple[Tensor, Tensor]:
        """Theirs, of float32; in float64 from our frequencies, to which theirs are rounded."""
        if dtype == torch.float32:
            return cos_sin_of(rotary, x)
        theta = torch.tensor(layer.positions.frequencies, dtype=torch.float64)
        torch.testing.assert_close(rotary.inv_freq.double(), theta, rtol=1e-6, atol=0)
        angles = torch.outer(torch.arange(x.shape[1]).double(), theta).repeat(1, 2).unsqueeze(0)
        return angles.cos(), angles.sin()

    compare(theirs, layer, B, N, False, cos_sin, 1e-5 if dtype == torch.float32 else 1e-10)


@INTERLEAVED
def test_cached_steps_with_yarn_match_the_full_pass(interleaved: bool) -> None:
    theirs, _ = deepseek(3, 5, 4, 7, None, 11, interleaved, torch.float64, **yarn(1.0))
    layer, x, cache = ours_of(theirs, interleaved, YARN), tokens(2, 29, 11, dtype=torch.float64), KVCache(29)
    with torch.no_grad():
        steps = torch.cat([layer(part, cache=cache) for part in x.split([13, *[1] * 16], 1)], 1)
    torch.testing.assert_close(steps, layer(x), rtol=0, atol=1e-12)


@SIZES
def test_cached_steps_match_theirs(
    B: int, N: int, H: int, d_k: int, d_r: int, d_c: int, d_q: int | None, D: int
) -> None:
    theirs, rotary = deepseek(H, d_k, d_r, d_c, d_q, D, True, torch.float32)
    from transformers import DynamicCache

    layer, x = ours_of(theirs, True).eval(), tokens(B, N, D, dtype=torch.float32)
    (cos, sin), kept, own = cos_sin_of(rotary, x), DynamicCache(), KVCache(N)
    with torch.no_grad():
        for at in range(N):
            here = slice(at, at + 1)
            expected = theirs(x[:, here], (cos[:, here], sin[:, here]), None, cache=kept)[0]
            torch.testing.assert_close(layer(x[:, here], cache=own), expected, rtol=0, atol=1e-5)
