"""Stick-breaking attention: the worked example, the stick broken by a loop, masks, saturated scores and tiles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, assert_same_gradients, heads_of, perturbed, random
from torch import Tensor

from attnlab import masks
from attnlab.models.stickbreaking import StickBreakingAttention
from attnlab.models.stickbreaking.reference import reference
from attnlab.models.stickbreaking.stickbreaking import stick_breaking
from attnlab.nn.attention import UnsupportedError

B, N, H, D = 2, 11, 3, 15


def made(**options: Any) -> StickBreakingAttention:
    torch.manual_seed(0)
    return perturbed(StickBreakingAttention(D, H, **options))


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def by_hand(scores: tuple[float, ...], **options: Any) -> list[float]:
    """The outputs for the values 21, 42, 63 and 0, and these scores in units of ln 2, the same for all queries."""
    layer = StickBreakingAttention(4, 1, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.qkv.weight[0, 2], layer.qkv.weight[4, 0], layer.qkv.weight[8, 1] = 2 * math.log(2), 1, 1
        layer.output.weight.copy_(torch.eye(4))
        x = torch.tensor([[[score, value, 1.0, 0] for score, value in zip(scores, (21, 42, 63, 0), strict=True)]])
        return layer(x)[0, :, 0].tolist()


def test_the_worked_example() -> None:
    assert by_hand((1, 0, 2, 0)) == pytest.approx([0, 14, 28, 56])
    assert by_hand((0, 0, 0, 0)) == pytest.approx([0, 10.5, 26.25, 44.625])
    assert by_hand((1, 0, 2, 0), attend_current=True)[:3] == pytest.approx([14, 28, 56])


ALLOWED = {
    "no mask": None,
    "gaps": random(N, N) > -0.3,
    "per head": random(B, H, N, N) > 0.3,
    "own position": torch.eye(N, dtype=torch.bool),
}


@pytest.mark.parametrize("attend_current", [True, False])
@pytest.mark.parametrize("name", ALLOWED)
def test_a_loop_that_breaks_the_stick(name: str, attend_current: bool) -> None:
    layer, x, mask = made(attend_current=attend_current), tokens(), ALLOWED[name]
    allowed = torch.ones(B, H, N, N, dtype=torch.bool) if mask is None else mask.expand(B, H, N, N)
    q, k, v = heads_of(layer.qkv, x, H)
    heads, weights = torch.zeros_like(v), torch.zeros(B, H, N, N, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(torch.arange(B), torch.arange(H), torch.arange(N)).tolist():
        stick = 1.0
        for j in range(i if attend_current else i - 1, -1, -1):
            if allowed[b, h, i, j]:
                share = stick / (1 + math.exp(-(q[b, h, i] @ k[b, h, j]).item() / math.sqrt(D / H)))
                heads[b, h, i] += share * v[b, h, j]
                weights[b, h, i, j] = share
                stick -= share
    empty = ~weights.any(-1).any(1).unsqueeze(-1)
    expected = layer.output(heads.transpose(1, 2).flatten(2)).masked_fill(empty, 0.0)
    assert_same(layer(x, mask=mask), expected)
    assert_same(layer.attention_weights(x, mask=mask), weights)


def test_a_token_without_earlier_keys_returns_zeros() -> None:
    layer, x = made(), tokens().requires_grad_()
    out = layer(x, mask=masks.documents(torch.arange(N) // 4))
    assert out[0].any(-1).tolist() == [i % 4 != 0 for i in range(N)]
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not made()(tokens(1)).any()


def test_masked_keys_are_as_if_absent() -> None:
    layer, x = made(), tokens()
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[:, 4] = False
    rows = [i for i in range(N) if i != 4]
    assert_same(layer(x, mask=mask)[:, rows], layer(x[:, rows]))


def test_saturated_scores_do_not_cancel() -> None:
    """A large score takes all that is left, and the weights sum to at most one, whatever the size of the scores."""
    for large in (30.0, 1e4, 1e30):
        weights = stick_breaking(torch.tensor([0.0, large, -2.0, large, -large, 0.0]))
        torch.testing.assert_close(weights, torch.tensor([0, 0, 0, 0.5, 0, 0.5]), rtol=1e-6, atol=1e-12)
    exact = stick_breaking(torch.tensor([0.0, 25.0], dtype=torch.float64))
    torch.testing.assert_close(exact[0].item(), 0.5 / (1 + math.exp(25)), rtol=1e-14, atol=0)
    scores = torch.tensor([large, -large, large], requires_grad=True)
    stick_breaking(scores).square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0, 0]


def test_a_long_stick_is_exact_in_float32() -> None:
    scores = random(5, 4099, scale=0.1) - 6  # the first key is left with about exp(-10)
    exact, weights = stick_breaking(scores), stick_breaking(scores.float())
    assert (weights / exact - 1).abs().max() < 2e-5
    assert exact.min() > 1e-9


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_scores_and_sums_are_float32(dtype: torch.dtype, autocast: bool) -> None:
    """Only the weights are rounded, so their error does not grow with the number of keys in between."""
    q, k = (random(1, H, 331, 8, scale=scale).to(dtype) for scale in (2.0, 1.5))
    mask = masks.causal().bind(331, shape=(1, H))
    exact = stick_breaking(q.double() @ k.double().mT / math.sqrt(8), mask.tensor())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        weights = made()._attention_map(q, k, mask, None).materialize()
    assert weights.dtype == dtype
    large = exact > 1e-3  # float16 holds them with full precision
    assert (weights[large] / exact[large] - 1).abs().max() < 1.01 * torch.finfo(dtype).eps / 2


TILED = {
    "no mask": None,
    "window": masks.sliding_window(4),
    "left padding": masks.padding(torch.tensor([7, 11]), side="left", max_length=N),
    "documents": masks.documents(torch.arange(N) // torch.tensor([[3], [4]])),
    "gaps": masks.from_tensor(random(N, N) > -0.3),
    "per head": masks.per_head([masks.sliding_window(2), masks.strided(2), masks.causal()]),
}


@pytest.mark.parametrize("tile", [2**6, 2**8])
@pytest.mark.parametrize("name", TILED)
def test_tiles_match_the_reference(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", tile)
    layer, x, mask = made(), tokens().requires_grad_(), TILED[name]
    allowed = None if mask is None else mask.materialize(N).expand(B, H, N, N)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x, mask=mask), sources), (reference(layer, x, allowed), sources), 1e-12)


def test_tiles_are_not_saved_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**16)
    layer, saved = StickBreakingAttention(D, H), [0]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        layer(torch.randn(1, 521, D)).sum()
    assert max(saved) <= 4 * 521 * 3 * D


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**5)
    layer, x = perturbed(StickBreakingAttention(4, 2)), random(1, 4, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)


def test_what_does_not_hold_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="StickBreakingAttention is always causal"):
        StickBreakingAttention(D, H, causal=False)
    with pytest.raises(UnsupportedError, match="does not support context"):
        made()(tokens(), context=tokens())
