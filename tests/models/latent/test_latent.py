"""Latent attention: the expanded and the absorbed form, the content of the cache, and the default widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random
from torch import Tensor, nn
from torch.nn.utils import prune

from attnlab import KVCache, explain_path, masks
from attnlab.models.latent import LatentAttention
from attnlab.models.latent.reference import reference

B, N, H, D = 2, 11, 3, 13
SIZES: dict[str, Any] = {"kv_latent_dim": 7, "head_dim": 5, "rope_head_dim": 4, "causal": True}


def make(**options: Any) -> LatentAttention:
    torch.manual_seed(0)
    return perturbed(LatentAttention(D, H, **{**SIZES, **options}))


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def set_form(layer: LatentAttention, monkeypatch: pytest.MonkeyPatch, *, absorbed: bool) -> None:
    monkeypatch.setattr(layer, "_is_cheaper_absorbed", lambda queries, keys: absorbed)


@pytest.mark.parametrize("fraction", [1, 0.5])
def test_the_temperature_of_yarn_applies_to_the_whole_score(fraction: float) -> None:
    layer, x = make(positions=f"rotary(share={fraction}, scaling=yarn, factor=32, original=8)"), tokens()
    assert_same(layer(x), reference(layer, x, masks.causal().materialize(N).expand(B, H, N, N)))
    # At equal positions the score is that of a layer without YaRN, times the temperature.
    plain = make(positions=f"rotary(share={fraction})")
    plain.load_state_dict(layer.state_dict())
    (Q, K), (q, k) = ((m._project_queries(x), m._expand_kv(m._latents(x))[0]) for m in (layer, plain))
    torch.testing.assert_close((Q * K).sum(-1), (0.1 * math.log(32) + 1) ** 2 * (q * k).sum(-1))


@pytest.mark.parametrize("positions", ["rotary", "none", "rotary(layout=interleaved)"])
@pytest.mark.parametrize("q_latent_dim", [None, 3])
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("step", [1, 3])
@torch.no_grad()
def test_both_forms_decode_the_full_pass(
    positions: str, q_latent_dim: int | None, absorbed: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, cache = make(positions=positions, q_latent_dim=q_latent_dim), tokens(), KVCache(N)
    set_form(layer, monkeypatch, absorbed=absorbed)
    assert_same(torch.cat([layer(part, cache=cache) for part in x.split(step, 1)], 1), layer(x))


@torch.no_grad()
def test_the_absorbed_form_takes_a_mask_and_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, cache = make(), tokens(), KVCache(N)
    mask, bias = masks.padding(torch.tensor([N, 7]), side="left", max_length=N), random(H, N, N)
    layer(x[:, :8], mask=mask, attn_bias=bias[:, :8, :8], cache=cache)
    set_form(layer, monkeypatch, absorbed=True)
    steps = layer(x[:, 8:], mask=mask, attn_bias=bias[:, 8:], cache=cache)
    assert_same(steps, layer(x, mask=mask, attn_bias=bias)[:, 8:])


class Doubled(nn.Linear):
    """A subclass, as those of quantized and adapted projections."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def doubled(layer: LatentAttention) -> None:
    replacement = Doubled(*layer.kv_up.weight.T.shape, bias=False, dtype=torch.float64)
    replacement.load_state_dict(layer.kv_up.state_dict())
    layer.kv_up = replacement


CHANGES: dict[str, Callable[[LatentAttention], Any]] = {
    "nothing": lambda layer: None,
    "a parameter, in place": lambda layer: layer.kv_up.weight.data.mul_(2),
    "a parameter": lambda layer: setattr(layer.kv_up, "weight", nn.Parameter(2 * layer.kv_up.weight)),
    "a hook": lambda layer: layer.kv_up.register_forward_hook(lambda module, args, out: 2 * out),
    "a pre-hook": lambda layer: layer.kv_up.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "forward": lambda layer: setattr(layer.kv_up, "forward", lambda x: 2 * x @ layer.kv_up.weight.T),
    "the class": doubled,
    "a parametrization": lambda layer: nn.utils.parametrizations.weight_norm(layer.kv_up),
    "pruned weights": lambda layer: prune.l1_unstructured(layer.kv_up, "weight", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_both_forms_agree_after_a_change_of_the_projection(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The absorbed form reads the matrix of a plain projection, and calls any other."""
    layer, x, cache, outs = make(), tokens(), KVCache(N), []
    layer(x[:, :8], cache=cache)
    CHANGES[change](layer)
    for absorbed in (True, False):
        set_form(layer, monkeypatch, absorbed=absorbed)
        outs.append(layer(x[:, 8:], cache=cache.copy()))
    assert_same(*outs)


@torch.no_grad()
def test_the_absorbed_form_calls_global_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, cache, called = make(), tokens(), KVCache(N), []
    set_form(layer, monkeypatch, absorbed=True)
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: called.append(module))
    layer(x, cache=cache)
    hook.remove()
    assert layer.kv_up in called


def test_the_cache_stores_the_latent_and_one_rotated_key() -> None:
    layer, cache = make().float(), KVCache(N)
    with torch.no_grad():
        layer(tokens().float(), cache=cache)
    assert cache.bytes_per_token == 4 * B * (7 + 4)


@torch.no_grad()
def test_decoding_reads_the_latents_without_copies() -> None:
    layer, cache = make(), KVCache(500)
    layer(tokens(401), cache=cache)
    [dispatch] = explain_path(layer, tokens(1), cache=cache)
    assert dispatch.name == "shared"


@pytest.mark.parametrize(
    ("queries", "keys", "hooked", "absorbed"),
    [
        *((1, 1000, False, True), (1, 1, False, False), (78, 1000, False, True), (79, 1000, False, False)),
        *((1, 1000, True, True), (1, 1, True, False), (58, 1000, True, True), (59, 1000, True, False)),
    ],
)
def test_the_form_with_fewer_multiplications_is_chosen(queries: int, keys: int, hooked: bool, absorbed: bool) -> None:
    layer = LatentAttention(512, 8, kv_latent_dim=256, head_dim=64)
    if hooked:  # the matrix is then computed in each step
        layer.kv_up.register_forward_hook(lambda module, args, out: None)
    assert layer._is_cheaper_absorbed(queries, keys) == absorbed


def test_the_default_widths_are_those_of_the_paper() -> None:
    layer = LatentAttention(512, 8)
    assert (layer.head_dim, layer.kv_latent_dim, layer.rope_head_dim) == (64, 256, 32)
    assert LatentAttention(24, 8).rope_head_dim == 2
    assert LatentAttention(24, 8, positions="none").rope_head_dim == 0
