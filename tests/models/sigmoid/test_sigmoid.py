"""Sigmoid attention: keys that do not compete, and the softmax that it is far below zero."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.sigmoid import SigmoidAttention
from attnlab.models.sigmoid.sigmoid import sigmoid_weights
from attnlab.nn.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 12, 4


def made(**options: Any) -> SigmoidAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = SigmoidAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_it_has_the_parameters_of_multi_head_attention() -> None:
    assert sum(p.numel() for p in SigmoidAttention(D, H).parameters()) == 4 * D * (D + 1)
    assert made().state_dict().keys() == MultiAttention(D, H).state_dict().keys()


def test_keys_do_not_compete() -> None:
    layer, x, bias = made(), tokens(), torch.zeros(N, N, dtype=torch.float64)
    before = layer.attention_weights(x, attn_bias=bias)
    bias[:, 2] = 3
    after, others = layer.attention_weights(x, attn_bias=bias), [0, 1, 3, 4, 5, 6]
    assert torch.equal(after[..., others], before[..., others])
    assert (after[..., 2] > before[..., 2]).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_far_below_zero_its_rows_are_softmax_but_for_their_sum(causal: bool, positions: Any) -> None:
    layer, x = made(causal=causal, positions=positions), tokens()
    multi = MultiAttention(D, H, causal=causal, positions=positions).double()
    multi.load_state_dict(layer.state_dict())
    low = layer.attention_weights(x, attn_bias=torch.full((N, N), -40.0, dtype=torch.float64))
    torch.testing.assert_close(low / low.sum(-1, keepdim=True), multi.attention_weights(x))


def test_without_scores_each_weight_is_one_more_than_n() -> None:
    layer, x = made(causal=True), tokens()
    with torch.no_grad():
        layer.qkv.weight[:D].zero_()
        layer.qkv.bias[:D].zero_()
    counted = 1 / (torch.arange(N, dtype=torch.float64) + 2)
    same(layer.attention_weights(x), counted[:, None].expand(N, N).tril().expand(B, H, N, N))


def test_what_is_hidden_is_not_counted() -> None:
    layer, x = made(), tokens()
    mask = masks.padding(torch.tensor([4, 4]))
    same(layer(x, mask=mask)[:, :4], layer(x[:, :4]))
    explicit = mask.materialize(N).expand(B, 1, N, N)
    same(layer(x, mask=explicit)[:, :4], layer(x, mask=mask)[:, :4])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [1031, 70_001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_counts_any_number_of_keys(dtype: torch.dtype, keys: int, masked: bool) -> None:
    scores = torch.tensor([[2.0, 7.0]]).repeat(1, keys)[None, None, :, :keys].to(dtype)
    permitted = torch.ones(1, 1, 1, keys, dtype=torch.bool) if masked else None
    expected = torch.sigmoid(scores.double() - math.log(keys))
    torch.testing.assert_close(sigmoid_weights(scores, permitted).double(), expected, rtol=0.004, atol=1e-7)


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**5)
    layer, x = made(causal=True), tokens(5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)


@pytest.mark.parametrize("gone", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact(gone: list[int], positions: Any) -> None:
    layer, x = made(causal=True, positions=positions), tokens()
    small = prune_heads(layer, gone)
    with torch.no_grad():
        for head in gone:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    same(small(x), layer(x))


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
def test_positions_keep_every_promise(positions: str) -> None:
    check_attention(partial(SigmoidAttention, num_heads=2, positions=positions), fast=True)


def test_steps_are_the_whole() -> None:
    layer, x, cache = made(causal=True, positions="rotary"), tokens(), KVCache(N)
    with torch.no_grad():
        same(torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), layer(x))


def test_large_scores_stay_finite() -> None:
    layer, x = made(), (1000 * tokens()).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
        ({"dropout": 1.0}, "^dropout must be at least 0 and below 1, not 1.0$"),
        ({"positions": "rotary", "num_heads": 4}, "^rotary positions need an even head_dim, not 3"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SigmoidAttention(D, **{"num_heads": H, **options})
