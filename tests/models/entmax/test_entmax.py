"""Entmax attention: its options, its limits, its exact zeros, and what it keeps of the contract."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.entmax import EntmaxAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.pruning import prune_heads
from attnlab.ops.entmax import entmax

B, N, M, H, D = 2, 11, 7, 3, 21


def made(**options: Any) -> EntmaxAttention:
    """A layer whose biases are moved off zero, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = EntmaxAttention(D, H, **options).double().eval()
    torch.nn.init.normal_(layer.qkv.bias)
    torch.nn.init.normal_(layer.output.bias)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.25, 2.0])
def test_it_keeps_every_promise_with_every_alpha(alpha: float) -> None:
    # At 2 the derivative jumps where a weight becomes zero, and rounding decides on which side a weight is.
    skip = ["low_precision_accuracy"] if alpha == 2.0 else []
    check_attention(partial(EntmaxAttention, alpha=alpha), fast=True, skip=skip)


@pytest.mark.slow
def test_with_the_largest_alpha_it_keeps_what_no_edge_can_break() -> None:
    # Above 2 the slope has no bound where a weight begins, and hardly any key is left that is heard.
    edges = ["bfloat16_autocast", "gradients_match_finite_differences", "cross_attention"]
    # For the same reason rounding to few bits changes much.
    edges += [
        "low_precision_accuracy",
        "low_precision_error_growth",
        "dynamic_quantization",
    ]
    check_attention(partial(EntmaxAttention, alpha=4.0), skip=edges, fast=True)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_positions_keep_every_promise(positions: str) -> None:
    check_attention(partial(EntmaxAttention, positions=positions), fast=True)


@pytest.mark.parametrize("causal", [True, False])
def test_near_one_it_is_multi_head_attention(causal: bool) -> None:
    multi = MultiAttention(D, H, causal=causal).double()
    gaps = []
    for excess in (0.1, 0.01, 0.001):
        layer = made(alpha=1 + excess, causal=causal)
        multi.load_state_dict(layer.state_dict())
        gaps.append((layer(tokens()) - multi(tokens())).abs().max().item())
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2]
    assert gaps[2] < 0.01


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9), st.floats(1.05, 4), st.floats(-9, 9))
def test_weights_sum_to_one_in_the_order_of_the_scores(scores: list[float], alpha: float, shift: float) -> None:
    drawn = torch.tensor(scores, dtype=torch.float64)
    weights = entmax(drawn, alpha)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    order = drawn.argsort()
    assert (weights[order].diff() >= 0).all()
    torch.testing.assert_close(entmax(drawn + shift, alpha), weights, rtol=0, atol=1e-9)


ALPHAS = [1 + 1e-9, 1.000001, 1.0001, 1.01, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0]


def bisected(scores: Tensor, alpha: float) -> Tensor:
    """The weights in float64, by 200 halvings of the interval for the number that is taken from the scores."""
    scores = scores.double() - scores.double().amax(-1, keepdim=True)
    low, high = torch.zeros_like(scores[..., :1]), torch.full_like(scores[..., :1], math.log(scores.shape[-1]))
    for _ in range(200):
        middle = (low + high) / 2
        weights = (((alpha - 1) * (scores - middle)).clamp(min=-1).log1p() / (alpha - 1)).exp()
        low, high = (
            torch.where((weights.sum(-1, keepdim=True) >= 1) == up, middle, end)
            for up, end in ((True, low), (False, high))
        )
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 0.004), (torch.float16, 5e-4), (torch.float64, 1e-14)]
)
def test_weights_and_gradients_are_those_of_float64(alpha: float, dtype: torch.dtype, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.randn(17, 257, generator=generator)).to(dtype).requires_grad_()
    weights, true = entmax(scores, alpha), bisected(scores.detach(), alpha)
    assert (weights.double() - true).abs().max() < limit
    direction = torch.randn(17, 257, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights.double() * direction).sum(), scores)
    slope = torch.where(true > 0, true ** (2 - alpha), 0.0)
    expected = slope * (direction - (slope * direction).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))
    # Above 2 the slope has no bound where a weight begins, so that the rounding of one score shows.
    assert (gradient.double() - expected).norm() < (4 if alpha <= 2 else 4000) * limit * expected.norm()


@pytest.mark.parametrize("excess", [1e-9, 1e-12, 2.3e-16])
def test_the_limit_is_softmax(excess: float) -> None:
    scores = torch.randn(17, 257, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entmax(scores, 1 + excess), scores.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, in forward-mode AD
@pytest.mark.parametrize("alpha", [1.000001, 1.25, 1.5, 2.0, 2.5, 4.0])
def test_second_derivatives_are_exact(alpha: float) -> None:
    scores = torch.tensor([[0.3, -0.2, 0.1], [9.0, 0.2, 8.9]], dtype=torch.float64, requires_grad=True)
    assert alpha < 1.2 or (entmax(scores, alpha)[1, 1] == 0).all()
    assert torch.autograd.gradgradcheck(lambda s: entmax(s, alpha).tanh(), scores)
    assert torch.autograd.gradcheck(lambda s: entmax(s, alpha), scores, check_forward_ad=True)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 4.0])
def test_a_lead_of_one_over_alpha_less_one_takes_all(alpha: float) -> None:
    lead = 1 / (alpha - 1)
    assert entmax(torch.tensor([0.0, lead + 1e-6, 0.0], dtype=torch.float64), alpha).tolist() == [0, 1, 0]
    assert (entmax(torch.tensor([0.0, 0.9 * lead], dtype=torch.float64), alpha) > 0).all()


def test_a_larger_alpha_leaves_more_zeros() -> None:
    zeros = [
        (made(alpha=alpha).attention_weights(tokens(101)) == 0).double().mean().item()
        for alpha in (1.25, 1.5, 2.0, 4.0)
    ]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]
    assert zeros[-1] > 0.9


def test_what_has_no_weight_has_no_gradient() -> None:
    scores = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    weights = entmax(scores, 1.5)
    assert weights.tolist() == [0, 0, 1]
    weights[1].backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_its_own_sequence_as_context_is_self_attention() -> None:
    layer = made()
    torch.testing.assert_close(layer(tokens(), context=tokens()), layer(tokens()))
    assert layer(tokens(), context=tokens(M)).shape == (B, N, D)


def test_a_mask_takes_keys_out_before_weights_are_shared() -> None:
    layer, x = made(), tokens()
    mask = masks.padding(torch.tensor([4, 4]))
    weights = layer.attention_weights(x, mask=mask)
    assert not weights[..., 4:].any()
    torch.testing.assert_close(layer(x, mask=mask)[:, :4], layer(x[:, :4]))


def test_no_fused_kernel_is_said_to_make_it() -> None:
    with torch.no_grad():
        [path] = explain_path(made(), tokens())
    assert path.name == "rows"


def test_steps_with_a_cache_are_the_full_pass() -> None:
    layer, x, cache = made(causal=True), tokens(), KVCache(N)
    with torch.no_grad():
        steps = torch.cat([layer(token, cache=cache) for token in x.split(1, 1)], 1)
    torch.testing.assert_close(steps, layer(x))


def test_a_windowed_cache_stays_small() -> None:
    layer, x, cache = made(causal=True), tokens(301), KVCache(301, window=4)
    held, steps = set(), []
    with torch.no_grad():
        for token in x.split(1, 1):
            steps.append(layer(token, mask=masks.sliding_window(4), cache=cache))
            held.add(cache.bytes)
    torch.testing.assert_close(torch.cat(steps, 1), layer(x, mask=masks.sliding_window(4)))
    assert len(held) == 1, "it never grows"


def test_pruned_is_the_same_without_those_heads() -> None:
    layer, x = made(causal=True, alpha=2.0), tokens()
    pruned = prune_heads(layer, [1])
    with torch.no_grad():
        layer.output.weight.unflatten(1, (H, D // H))[:, 1] = 0
    torch.testing.assert_close(pruned(x), layer(x), rtol=0, atol=1e-13)
    assert (pruned.alpha, pruned.num_heads) == (2.0, 2)


@pytest.mark.parametrize("alpha", [1.0, 1, 0.5, -2.0, 4.5, float("nan"), float("inf")])
def test_bad_alphas_are_refused(alpha: float) -> None:
    says = rf"^alpha must be above 1 \(softmax is the limit\) and at most 4, not {alpha}$"
    with pytest.raises(ValueError, match=says):
        EntmaxAttention(D, H, alpha=alpha)
