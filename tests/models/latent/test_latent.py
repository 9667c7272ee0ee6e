"""Latent attention: the expanded and the absorbed form, the content of the cache, and the options."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.latent import LatentAttention
from attnlab.models.latent.reference import reference

B, N, H, D = 2, 11, 3, 13
SIZES: dict[str, Any] = {"kv_latent_dim": 7, "head_dim": 5, "rope_head_dim": 4, "causal": True}


def make(**options: Any) -> LatentAttention:
    torch.manual_seed(0)
    layer = LatentAttention(D, H, **{**SIZES, **options}).double().eval()
    torch.nn.init.normal_(layer.kv_norm.weight, 1.0, 0.3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def set_form(layer: LatentAttention, monkeypatch: pytest.MonkeyPatch, *, absorbed: bool) -> None:
    monkeypatch.setattr(layer, "_is_cheaper_absorbed", lambda queries, keys: absorbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"kv_latent_dim": 3, "head_dim": 5}, {"q_latent_dim": 5, "rope_head_dim": 2}, {"positions": "none"}],
    ids=["narrow", "query latent", "no positions"],
)
def test_conformance(options: dict[str, Any]) -> None:
    check_attention(partial(LatentAttention, **options), fast=True)


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_the_temperature_of_yarn_applies_to_the_whole_score(fraction: float) -> None:
    layer, x = make(positions=f"rotary(share={fraction}, scaling=yarn, factor=32, original=8)"), tokens()
    same(layer(x), reference(layer, x, masks.causal().materialize(N).expand(B, H, N, N)))
    # At equal positions the score is that of a layer without YaRN, times the temperature.
    plain = make(positions=f"rotary(share={fraction})")
    plain.load_state_dict(layer.state_dict())
    (Q, K), (q, k) = ((m._project_queries(x), m._expand_kv(m._latents(x))[0]) for m in (layer, plain))
    torch.testing.assert_close((Q * K).sum(-1), (0.1 * math.log(32) + 1) ** 2 * (q * k).sum(-1))


@pytest.mark.parametrize("positions", ["rotary", "none", "rotary(layout=interleaved)"])
@pytest.mark.parametrize("q_latent_dim", [None, 3])
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("step", [1, 3])
def test_both_forms_decode_the_full_pass(
    positions: str, q_latent_dim: int | None, absorbed: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, cache = make(positions=positions, q_latent_dim=q_latent_dim), tokens(), KVCache(N)
    set_form(layer, monkeypatch, absorbed=absorbed)
    with torch.no_grad():
        same(torch.cat([layer(part, cache=cache) for part in x.split(step, 1)], 1), layer(x))


def test_the_absorbed_form_takes_a_mask_and_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, cache = make(), tokens(), KVCache(N)
    mask = masks.padding(torch.tensor([N, 7]), side="left", max_length=N)
    bias = torch.randn(H, N, N, dtype=torch.float64)
    with torch.no_grad():
        layer(x[:, :8], mask=mask, attn_bias=bias[:, :8, :8], cache=cache)
        set_form(layer, monkeypatch, absorbed=True)
        same(layer(x[:, 8:], mask=mask, attn_bias=bias[:, 8:], cache=cache), layer(x, mask=mask, attn_bias=bias)[:, 8:])


def test_the_cache_stores_the_latent_and_one_rotated_key() -> None:
    layer, cache = make().float(), KVCache(N)
    with torch.no_grad():
        layer(tokens().float(), cache=cache)
    assert cache.bytes_per_token == 4 * B * (7 + 4)


def test_decoding_reads_the_latents_without_copies() -> None:
    layer, cache = make(), KVCache(500)
    with torch.no_grad():
        layer(tokens(401), cache=cache)
        [dispatch] = explain_path(layer, tokens(1), cache=cache)
    assert dispatch.name == "shared"


@pytest.mark.parametrize(
    ("queries", "keys", "absorbed"), [(1, 1000, True), (1, 1, False), (58, 1000, True), (59, 1000, False)]
)
def test_the_form_with_fewer_multiplications_is_chosen(queries: int, keys: int, absorbed: bool) -> None:
    layer = LatentAttention(512, 8, kv_latent_dim=256, head_dim=64)
    assert layer._is_cheaper_absorbed(queries, keys) == absorbed


def test_the_default_widths_are_those_of_the_paper() -> None:
    layer = LatentAttention(512, 8)
    assert (layer.head_dim, layer.kv_latent_dim, layer.rope_head_dim) == (64, 256, 32)
    assert LatentAttention(24, 8).rope_head_dim == 2
    assert LatentAttention(24, 8, positions="none").rope_head_dim == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv_latent_dim": 0}, ValueError, "kv_latent_dim must be at least 1, not 0"),
        ({"q_latent_dim": 2.5}, TypeError, "q_latent_dim must be a"),
        ({"rope_head_dim": 3}, ValueError, "even"),
        ({"positions": "alibi"}, ValueError, "positions of latent attention are rotary or none, not alibi"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LatentAttention(D, H, **{**SIZES, **options})
