"""Sliding-window attention: its options, what it is when the window is wide, and what a window saves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.slidingwindow import SlidingWindowAttention
from attnlab.nn.pruning import prune_heads

B, N, H, D = 2, 11, 3, 21


def made(**options: Any) -> SlidingWindowAttention:
    """A layer whose biases are moved off zero, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = SlidingWindowAttention(D, H, **options).double().eval()
    torch.nn.init.normal_(layer.qkv.bias)
    torch.nn.init.normal_(layer.output.bias)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.parametrize("options", [{"window_size": 3}, {"window_size": 1}, {"window_size": 2, "dilation": 2}])
def test_small_windows_keep_every_promise(options: dict[str, int]) -> None:
    # A token alone, or under window(2), attends to itself: no other reaches it, and all heads have the same weights.
    alone = [] if options == {"window_size": 3} else ["tokens_interact", "weights_are_per_head"]
    check_attention(partial(SlidingWindowAttention, **options), skip=alone, fast=True)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_positions_keep_every_promise(positions: str) -> None:
    check_attention(partial(SlidingWindowAttention, window_size=3, positions=positions), fast=True)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_as_long_as_the_sequence_is_multi_head_attention(causal: bool) -> None:
    layer, multi = made(window_size=N, causal=causal), MultiAttention(D, H, causal=causal).double()
    multi.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(tokens()), multi(tokens()))
    sparse = made(window_size=N - 1, causal=causal)
    assert not torch.allclose(sparse(tokens()), multi(tokens()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("window", "dilation", "rule"), [(3, 1, masks.sliding_window(3)), (3, 2, masks.dilated(3, 2))])
def test_it_is_multi_head_attention_under_the_rule(causal: bool, window: int, dilation: int, rule: masks.Mask) -> None:
    layer, multi = (
        made(window_size=window, dilation=dilation, causal=causal),
        MultiAttention(D, H, causal=causal).double(),
    )
    multi.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(tokens()), multi(tokens(), mask=rule))
    torch.testing.assert_close(layer.attention_weights(tokens()), multi.attention_weights(tokens(), mask=rule))


def test_long_sequences_take_the_window_path() -> None:
    layer, x = made(window_size=16, causal=True), tokens(257)
    with torch.no_grad():
        [path] = explain_path(layer, x)
    assert path.name == "window"
    assert "reaches 15 back and 0 ahead of 257 keys" in path.why


def test_a_windowed_cache_needs_no_mask_and_stays_small() -> None:
    layer, x, cache = made(window_size=4, causal=True), tokens(401), KVCache(401, window=4)
    held, steps = set(), []
    with torch.no_grad():
        for token in x.split(1, 1):
            steps.append(layer(token, cache=cache))
            held.add(cache.bytes)
    torch.testing.assert_close(torch.cat(steps, 1), layer(x))
    assert len(held) == 1, "it never grows"
    assert cache.num_cached < 100
    with pytest.raises(ValueError, match=r"the cache keeps 3 tokens, but the mask looks 3 back"), torch.no_grad():
        layer(x, cache=KVCache(401, window=3))


def test_pruned_is_the_same_without_those_heads() -> None:
    layer, x = made(window_size=3, causal=True), tokens()
    pruned = prune_heads(layer, [1])
    with torch.no_grad():
        layer.output.weight.unflatten(1, (H, D // H))[:, 1] = 0
    torch.testing.assert_close(pruned(x), layer(x), rtol=0, atol=1e-13)
    assert (pruned.window_size, pruned.num_heads) == (3, 2)


@pytest.mark.parametrize("name", ["window_size", "dilation"])
@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        (0, ValueError, "must be at least 1, not 0"),
        (-3, ValueError, "must be at least 1, not -3"),
        (2.0, TypeError, "must be a whole number, not 2.0"),
        (True, TypeError, "must be a whole number, not True"),
        (None, TypeError, "must be a whole number, not None"),
    ],
)
def test_bad_options_are_refused(name: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{name} {says}$"):
        SlidingWindowAttention(D, H, **{name: value})
