"""Entmax attention: conformance for every alpha, the softmax limit, pruning and the options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_pruning_is_exact, perturbed, random

from attnlab import check_attention, explain_path
from attnlab.models.entmax import EntmaxAttention
from attnlab.models.multihead import MultiAttention

B, N, H, D = 2, 11, 3, 21


def layer_of(**options: Any) -> EntmaxAttention:
    return perturbed(EntmaxAttention(D, H, **options))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.25, 2.0])
def test_conformance_with_alpha(alpha: float) -> None:
    # At 2 the derivative jumps where a weight becomes zero, and rounding decides which weights are zero.
    skip = ["low_precision_accuracy"] if alpha == 2.0 else []
    check_attention(partial(EntmaxAttention, alpha=alpha), fast=True, skip=skip)


@pytest.mark.slow
def test_conformance_with_the_largest_alpha() -> None:
    # Above 2 the slope is unbounded where a weight begins, and hardly any key has a nonzero weight.
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
def test_conformance_with_positions(positions: str) -> None:
    check_attention(partial(EntmaxAttention, positions=positions), fast=True)


@pytest.mark.parametrize("causal", [True, False])
def test_near_one_it_is_multi_head_attention(causal: bool) -> None:
    multihead, x, errors = MultiAttention(D, H, causal=causal).double(), random(B, N, D), []
    for excess in (0.1, 0.01, 0.001):
        layer = layer_of(alpha=1 + excess, causal=causal)
        multihead.load_state_dict(layer.state_dict())
        errors.append((layer(x) - multihead(x)).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 0.01


def test_a_larger_alpha_gives_more_zeros() -> None:
    x = random(B, 101, D)
    zeros = [
        (layer_of(alpha=alpha).attention_weights(x) == 0).double().mean().item() for alpha in (1.25, 1.5, 2.0, 4.0)
    ]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]
    assert zeros[-1] > 0.9


def test_the_backend_is_rowwise() -> None:
    with torch.no_grad():
        [dispatch] = explain_path(layer_of(), random(B, N, D))
    assert dispatch.name == "rows"


def test_pruning_is_exact() -> None:
    small = assert_pruning_is_exact(layer_of(causal=True, alpha=2.0), [1], random(B, N, D))
    assert (small.alpha, small.num_heads) == (2.0, 2)


@pytest.mark.parametrize("alpha", [1.0, 1, 0.5, -2.0, 4.5, float("nan"), float("inf")])
def test_invalid_alphas_raise(alpha: float) -> None:
    message = rf"^alpha must be above 1 \(softmax is the limit\) and at most 4, not {alpha}$"
    with pytest.raises(ValueError, match=message):
        EntmaxAttention(D, H, alpha=alpha)
