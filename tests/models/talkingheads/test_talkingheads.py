"""Talking-heads attention: multi-head attention at initialization, the two mixtures, and pruning."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_pruning_is_exact, assert_same, perturbed, random

from attnlab import check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.talkingheads import TalkingHeadsAttention
from attnlab.network.pruning import prune_heads
from attnlab.nn.attention import UnsupportedError

B, N, H, D = 2, 7, 3, 12


def layer_of(**options: Any) -> TalkingHeadsAttention:
    return perturbed(TalkingHeadsAttention(D, H, **options))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_initially_it_is_multi_head_attention_with_two_more_matrices(causal: bool, positions: Any) -> None:
    layer = TalkingHeadsAttention(D, H, causal=causal, positions=positions).double()
    assert sum(p.numel() for p in layer.parameters()) == 4 * D * (D + 1) + 2 * H * H
    multihead = MultiAttention(D, H, causal=causal, positions=positions).double()
    multihead.load_state_dict({name: value for name, value in layer.state_dict().items() if "." in name})
    x, mask = random(B, N, D), masks.padding(torch.tensor([4, 7]))
    assert_same(layer(x, mask=mask), multihead(x, mask=mask))
    assert_same(layer.attention_weights(x), multihead.attention_weights(x))


def test_a_row_of_the_mixture_belongs_to_the_head_that_uses_it() -> None:
    layer, x = layer_of(), random(B, N, D)
    with torch.no_grad():
        layer.scores.copy_(torch.eye(H))
        layer.mixture.copy_(torch.eye(H))
        plain = layer.attention_weights(x)
        layer.mixture[0, 2] = 0.5
    assert_same(layer.attention_weights(x)[:, 0], plain[:, 0] + 0.5 * plain[:, 2])
    assert_same(layer.attention_weights(x)[:, 1:], plain[:, 1:])


@pytest.mark.slow
def test_conformance_with_rotary_positions() -> None:
    check_attention(partial(TalkingHeadsAttention, num_heads=2, positions="rotary"), fast=True)


@pytest.mark.parametrize("pruned", [[0], [1], [0, 2]])
def test_pruning_heads_that_no_other_head_uses_is_exact(pruned: list[int]) -> None:
    layer = layer_of()
    kept = [head for head in range(H) if head not in pruned]
    with torch.no_grad():
        for matrix in (layer.scores, layer.mixture):
            for head in pruned:
                matrix[kept, head] = 0
    small = assert_pruning_is_exact(layer, pruned, random(B, N, D))
    assert small.scores.shape == small.mixture.shape == (len(kept), len(kept))


@pytest.mark.parametrize("matrix", ["scores", "mixture"])
def test_pruning_a_head_that_another_head_uses_raises(matrix: str) -> None:
    layer = TalkingHeadsAttention(D, H)
    with torch.no_grad():
        getattr(layer, matrix)[0, 2] = 0.1
    with pytest.raises(UnsupportedError, match=r"^the remaining heads use pruned heads \(2\): set their columns"):
        prune_heads(layer, [1, 2])
    assert prune_heads(layer, [0]).num_heads == 2  # head 0 uses head 2, not the reverse
    assert layer.num_heads == H


def test_position_biases_raise() -> None:
    with pytest.raises(ValueError, match=r"^TalkingHeadsAttention supports positions none and rotary, not t5"):
        TalkingHeadsAttention(D, H, positions="t5")
