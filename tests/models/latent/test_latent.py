"""Latent attention: both of its forms, what its cache holds, and its options."""

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


def made(**options: Any) -> LatentAttention:
    torch.manual_seed(0)
    layer = LatentAttention(D, H, **{**SIZES, **options}).double().eval()
    torch.nn.init.normal_(layer.kv_norm.weight, 1.0, 0.3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [{"kv_latent_dim": 3, "head_dim": 5}, {"q_latent_dim": 5, "rope_head_dim": 2}, {"positions": "none"}],
    ids=["narrow", "queries through a latent", "without places"],
)
def test_every_kind_keeps_every_promise(options: dict[str, Any]) -> None:
    check_attention(partial(LatentAttention, **options), fast=True)


@pytest.mark.parametrize("share", [1, 0.5])
def test_the_temperature_of_yarn_applies_to_the_whole_score(share: float) -> None:
    layer, x = (
        made(positions=f"rotary(rotary_fraction={share}, scaling=yarn, factor=32, original_max_length=8)"),
        tokens(),
    )
    permitted = masks.causal().materialize(N).expand(B, H, N, N)
    torch.testing.assert_close(layer(x), reference(layer, x, permitted), rtol=0, atol=1e-12)
    # At the same position nothing is turned: the score is that without positions, times the temperature.
    alone = made(positions=f"rotary(rotary_fraction={share})")
    alone.load_state_dict(layer.state_dict())
    (Q, K), (q, k) = ((m._queries(x), m._expanded(m._kept(x))[0]) for m in (layer, alone))
    temperature = (0.1 * math.log(32) + 1) ** 2
    torch.testing.assert_close((Q * K).sum(-1), temperature * (q * k).sum(-1))


@pytest.mark.parametrize("positions", ["rotary", "none", "rotary(layout=interleaved)"])
@pytest.mark.parametrize("q_latent_dim", [None, 3])
@pytest.mark.parametrize("piece", [1, 3])
def test_absorbed_and_expanded_are_one(
    positions: str, q_latent_dim: int | None, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, outs = made(positions=positions, q_latent_dim=q_latent_dim), tokens(), []
    for absorbed in (True, False):
        monkeypatch.setattr(layer, "_is_cheaper_absorbed", lambda queries, keys, way=absorbed: way)
        cache = KVCache(N)
        with torch.no_grad():
            outs.append(torch.cat([layer(part, cache=cache) for part in x.split(piece, 1)], 1))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(outs[0], layer(x), rtol=0, atol=1e-12)


def test_absorbed_under_a_mask_and_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, cache = made(), tokens(), KVCache(N)
    monkeypatch.setattr(layer, "_is_cheaper_absorbed", lambda queries, keys: queries == 3)
    mask, bias = (
        masks.padding(torch.tensor([N, 7]), side="left", max_length=N),
        torch.randn(H, N, N, dtype=torch.float64),
    )
    with torch.no_grad():
        layer(x[:, :8], mask=mask, attn_bias=bias[:, :8, :8], cache=cache)
        found = layer(x[:, 8:], mask=mask, attn_bias=bias[:, 8:], cache=cache)
        torch.testing.assert_close(found, layer(x, mask=mask, attn_bias=bias)[:, 8:], rtol=0, atol=1e-12)


def test_a_cache_holds_the_latent_and_one_turned_key() -> None:
    layer, cache = made().float(), KVCache(N)
    with torch.no_grad():
        layer(tokens().float(), cache=cache)
    assert cache.bytes_per_token == 4 * B * (7 + 4)


def test_a_step_reads_the_latents_as_they_lie() -> None:
    layer, cache = made(), KVCache(500)
    with torch.no_grad():
        layer(tokens(401), cache=cache)
        [path] = explain_path(layer, tokens(1), cache=cache)
    assert path.name == "shared"
    assert "read 1 heads of 402 keys as they lie" in path.why


@pytest.mark.parametrize(
    ("queries", "keys", "absorbed"), [(1, 1000, True), (1, 1, False), (58, 1000, True), (59, 1000, False)]
)
def test_what_takes_fewer_products_is_taken(queries: int, keys: int, absorbed: bool) -> None:
    layer = LatentAttention(512, 8, kv_latent_dim=256, head_dim=64)
    assert layer._is_cheaper_absorbed(queries, keys) == absorbed


def test_the_widths_are_those_of_the_paper_where_nothing_is_said() -> None:
    layer = LatentAttention(512, 8)
    assert (layer.head_dim, layer.kv_latent_dim, layer.rope_head_dim) == (64, 256, 32)
    assert LatentAttention(24, 8).rope_head_dim == 2
    assert LatentAttention(24, 8, positions="none").rope_head_dim == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kv_latent_dim": 0}, ValueError, "kv_latent_dim must be at least 1, not 0"),
        ({"q_latent_dim": 2.5}, TypeError, "q_latent_dim must be a whole number, not 2.5"),
        ({"rope_head_dim": 3}, ValueError, "must be even and at least 2"),
        ({"positions": "alibi"}, ValueError, "positions of latent attention are rotary or none, not alibi"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        LatentAttention(D, H, **{**SIZES, **options})
