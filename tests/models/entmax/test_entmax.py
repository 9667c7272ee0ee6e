"""Entmax attention: the softmax limit, the number of zeros, and the backend."""

from __future__ import annotations

from typing import Any

import torch
from comparison import CAUSAL, perturbed, random

from attnlab import explain_path
from attnlab.models.entmax import EntmaxAttention
from attnlab.models.multihead import MultiAttention

B, N, H, D = 2, 11, 3, 21


def layer_of(**options: Any) -> EntmaxAttention:
    return perturbed(EntmaxAttention(D, H, **options))


@CAUSAL
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
