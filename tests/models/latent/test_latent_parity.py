"""Latent attention against DeepSeek-V3's in transformers 5.24.

Their norms are always float32; for the comparisons in float64 they are replaced by those of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import (
    DTYPES,
    PADDED,
    TOLERANCE,
    assert_parity_with_transformers,
    assert_same,
    copy_parameters,
    from_transformers,
    random,
    rotation_of,
)
from torch import Tensor, nn

from attnlab import KVCache
from attnlab.models.latent import LatentAttention

ORACLES = {"test_": ("transformers", "DeepseekV3Attention")}
SIZES = pytest.mark.parametrize(
    "sizes", [(2, 13, 3, 5, 4, 7, None, 11), (1, 17, 2, 3, 2, 13, 5, 7), (3, 7, 5, 2, 6, 3, None, 23)]
)
"""B, N, H, d_k, d_r, d_c, d_q and D."""

INTERLEAVED = pytest.mark.parametrize("interleaved", [True, False])
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
# With both values equal, as in DeepSeek's settings, the whole score is scaled, not the cosines and sines.
YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0}
OUR_YARN = {"scaling": "yarn", "factor": 4, "original": 16}


def deepseek(sizes: tuple[Any, ...], interleaved: bool, dtype: torch.dtype, **options: Any) -> Any:
    """Their layer; its norms are exact in float64."""
    _, _, H, d_k, d_r, d_c, d_q, D = sizes
    widths = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H, "q_lora_rank": d_q}
    widths |= {"kv_lora_rank": d_c, "qk_rope_head_dim": d_r, "qk_nope_head_dim": d_k, "v_head_dim": d_k}
    options = {"rope_interleave": interleaved, "max_position_embeddings": 64, "attn_implementation": "sdpa", **options}
    layer = from_transformers("deepseek_v3", "DeepseekV3", dtype, **widths, **options)
    for name in ("kv_a_layernorm", "q_a_layernorm"):
        if (norm := getattr(layer, name)) is not None:
            nn.init.normal_(norm.weight, 1.0, 0.2)
            if dtype == torch.float64:
                setattr(layer, name, exact := nn.RMSNorm(len(norm.weight), eps=1e-6, dtype=dtype))
                exact.load_state_dict(norm.state_dict())
    return layer


def ours_of(theirs: Any, interleaved: bool, settings: dict[str, Any]) -> tuple[LatentAttention, Any]:
    """Our layer with their parameters, and the pairs of parameters."""
    c, rope = theirs.config, {"layout": "interleaved" if interleaved else "half", **settings}
    layer = LatentAttention(
        c.hidden_size,
        c.num_attention_heads,
        kv_latent_dim=c.kv_lora_rank,
        q_latent_dim=c.q_lora_rank,
        head_dim=c.qk_nope_head_dim,
        rope_head_dim=c.qk_rope_head_dim,
        causal=True,
        positions=f"rotary({', '.join(f'{name}={value}' for name, value in rope.items())})",
    ).to(theirs.o_proj.weight.dtype)
    names = {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "output": "o_proj"}
    of_queries = {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "query": "q_b_proj"}
    names |= {"query": "q_proj"} if c.q_lora_rank is None else of_queries

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        # theirs holds the keys and the values of a head, ours the keys of all heads first
        up = read(theirs.kv_b_proj.weight).unflatten(0, (layer.num_heads, 2, layer.head_dim))
        found = [(getattr(layer, own).weight, getattr(theirs, other).weight) for own, other in names.items()]
        return [(read(layer.kv_up.weight), up.transpose(0, 1).flatten(0, 2)), *((read(a), read(b)) for a, b in found)]

    copy_parameters(pairs)
    return layer, pairs


@SIZES
@INTERLEAVED
@PADDED
@DTYPES
@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_deepseek(sizes: tuple[Any, ...], interleaved: bool, padded: bool, dtype: torch.dtype, scaling: str) -> None:
    B, N = sizes[:2]
    yarn = scaling == "yarn"
    theirs = deepseek(sizes, interleaved, dtype, **({"rope_parameters": YARN} if yarn else {}))
    layer, pairs = ours_of(theirs, interleaved, OUR_YARN if yarn else {})
    assert (layer.positions.attention_factor > 1.1) == yarn  # type: ignore[union-attr]
    rotation = rotation_of(theirs, N)
    if dtype == torch.float64:  # their cosines and sines are float32
        theta = torch.tensor(layer.positions.frequencies, dtype=dtype)  # type: ignore[union-attr]
        angles = torch.outer(torch.arange(N, dtype=dtype), theta).repeat(1, 2)[None]
        for exact, rounded in zip(exacts := (angles.cos(), angles.sin()), rotation, strict=True):
            assert_same(exact.float(), rounded, 1e-5)
        rotation = exacts
    assert_parity_with_transformers(layer, theirs, (B, N), padded, rotation, TOLERANCE[dtype], pairs=pairs)


@INTERLEAVED
@torch.no_grad()
def test_cached_steps_with_yarn_match_the_full_pass(interleaved: bool) -> None:
    theirs = deepseek((2, 29, 3, 5, 4, 7, None, 11), interleaved, torch.float64, rope_parameters=YARN)
    layer, x, cache = ours_of(theirs, interleaved, OUR_YARN)[0], random(2, 29, 11), KVCache(29)
    assert_same(torch.cat([layer(part, cache=cache) for part in x.split([13, *[1] * 16], 1)], 1), layer(x))


@SIZES
@torch.no_grad()
def test_cached_steps_match_theirs(sizes: tuple[Any, ...]) -> None:
    theirs = deepseek(sizes, True, torch.float32)
    from transformers import DynamicCache

    (B, N, *_, D), layer = sizes, ours_of(theirs, True, {})[0].eval()
    x = random(B, N, D, dtype=torch.float32)
    (cos, sin), their_cache, cache = rotation_of(theirs, N), DynamicCache(), KVCache(N)
    for i in range(N):
        step = slice(i, i + 1)
        expected = theirs(x[:, step], (cos[:, step], sin[:, step]), None, cache=their_cache)[0]
        assert_same(layer(x[:, step], cache=cache), expected, 1e-5)
