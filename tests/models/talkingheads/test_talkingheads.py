"""Talking-heads attention: multi-head attention at its start, and heads that are heard by others."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.talkingheads import TalkingHeadsAttention
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 12, 4


def made(**options: Any) -> TalkingHeadsAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_two_matrices_over_the_heads_are_all_that_is_new() -> None:
    count = sum(parameter.numel() for parameter in TalkingHeadsAttention(D, H).parameters())
    assert count == 4 * D * (D + 1) + 2 * H * H


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_at_its_start_it_is_multi_head_attention(causal: bool, positions: Any) -> None:
    torch.manual_seed(0)
    layer = TalkingHeadsAttention(D, H, causal=causal, positions=positions).double()
    multi = MultiAttention(D, H, causal=causal, positions=positions).double()
    multi.load_state_dict({name: part for name, part in layer.state_dict().items() if "." in name})
    mask = masks.padding(torch.tensor([4, 7]))
    same(layer(tokens(), mask=mask), multi(tokens(), mask=mask))
    same(layer.attention_weights(tokens()), multi.attention_weights(tokens()))


def test_a_head_hears_by_row() -> None:
    layer, x = made(), tokens()
    with torch.no_grad():
        layer.scores.copy_(torch.eye(H))
        layer.mixture.copy_(torch.eye(H))
        alone = layer.attention_weights(x)
        layer.mixture[0, 2] = 0.5
    same(layer.attention_weights(x)[:, 0], alone[:, 0] + 0.5 * alone[:, 2])
    same(layer.attention_weights(x)[:, 1:], alone[:, 1:])


def test_rotary_positions_keep_every_promise() -> None:
    check_attention(partial(TalkingHeadsAttention, num_heads=2, positions="rotary"), fast=True)


def test_steps_are_the_whole() -> None:
    layer, x, cache = made(causal=True, positions="rotary"), tokens(), KVCache(N)
    with torch.no_grad():
        same(torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), layer(x))


@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
def test_heads_that_nobody_hears_can_go(gone: list[int]) -> None:
    layer, x = made(), tokens()
    left = [head for head in range(H) if head not in gone]
    with torch.no_grad():
        for matrix in (layer.scores, layer.mixture):
            for head in gone:
                matrix[left, head] = 0
    small = prune_heads(layer, gone)
    assert small.scores.shape == small.mixture.shape == (len(left), len(left))
    same(small.attention_weights(x), layer.attention_weights(x)[:, left])
    with torch.no_grad():
        for head in gone:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    same(small(x), layer(x))


@pytest.mark.parametrize("matrix", ["scores", "mixture"])
def test_a_head_that_is_heard_stays(matrix: str) -> None:
    layer = TalkingHeadsAttention(D, H)
    with torch.no_grad():
        getattr(layer, matrix)[0, 2] = 0.1
    with pytest.raises(UnsupportedError, match=r"^the heads that stay listen to what goes \(2\): set their columns"):
        prune_heads(layer, [1, 2])
    assert prune_heads(layer, [0]).num_heads == 2  # it hears, and is not heard
    assert layer.num_heads == H


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
        ({"positions": "rotary", "num_heads": 4}, "^rotary positions need an even head_dim, not 3"),
        ({"positions": "t5"}, "^TalkingHeadsAttention takes positions none or rotary, not t5"),
        ({"dropout": 1.0}, "^dropout must be at least 0 and below 1, not 1.0$"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TalkingHeadsAttention(D, **{"num_heads": H, **options})
