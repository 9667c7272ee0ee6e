"""Entmax attention: its options, its limits, its exact zeros, and what it keeps of the contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab import Cache, check_attention, explain_path, masks
from attnlab.models.entmax import EntmaxAttention
from attnlab.models.entmax.entmax import entmax
from attnlab.models.multihead import MultiAttention
from attnlab.pruning import prune_heads

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
    check_attention(partial(EntmaxAttention, alpha=alpha), fast=True)


@pytest.mark.slow
def test_with_the_largest_alpha_it_keeps_what_no_edge_can_break() -> None:
    # Above 2 the slope has no bound where a weight begins, and hardly any key is left that is heard.
    edges = ["runs under bfloat16 autocast", "gradients match finite differences", "context may be another sequence"]
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


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 4.0])
def test_a_lead_of_one_over_alpha_less_one_takes_all(alpha: float) -> None:
    lead = 1 / (alpha - 1)
    assert entmax(torch.tensor([0.0, lead + 1e-6, 0.0], dtype=torch.float64), alpha).tolist() == [0, 1, 0]
    assert (entmax(torch.tensor([0.0, 0.9 * lead], dtype=torch.float64), alpha) > 0).all()


def test_a_larger_alpha_leaves_more_zeros() -> None:
    zeros = [(made(alpha=alpha).weights(tokens(101)) == 0).double().mean().item() for alpha in (1.25, 1.5, 2.0, 4.0)]
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
    weights = layer.weights(x, mask=mask)
    assert not weights[..., 4:].any()
    torch.testing.assert_close(layer(x, mask=mask)[:, :4], layer(x[:, :4]))


def test_no_fused_kernel_is_said_to_make_it() -> None:
    with torch.no_grad():
        [path] = explain_path(made(), tokens())
    assert path.name == "rows"


def test_steps_with_a_cache_are_the_full_pass() -> None:
    layer, x, cache = made(causal=True), tokens(), Cache(N)
    with torch.no_grad():
        steps = torch.cat([layer(token, cache=cache) for token in x.split(1, 1)], 1)
    torch.testing.assert_close(steps, layer(x))


def test_a_windowed_cache_stays_small() -> None:
    layer, x, cache = made(causal=True), tokens(301), Cache(301, window=4)
    held, steps = set(), []
    with torch.no_grad():
        for token in x.split(1, 1):
            steps.append(layer(token, mask=masks.window(4), cache=cache))
            held.add(cache.bytes)
    torch.testing.assert_close(torch.cat(steps, 1), layer(x, mask=masks.window(4)))
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
