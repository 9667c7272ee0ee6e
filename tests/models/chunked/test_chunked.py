"""Chunked attention: its options, what it is when the chunk is long, and what its borders mean."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.chunked import ChunkedAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.pruning import prune_heads

B, N, H, D = 2, 11, 3, 21


def made(**options: Any) -> ChunkedAttention:
    """A layer whose biases are moved off zero, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = ChunkedAttention(D, H, **options).double().eval()
    torch.nn.init.normal_(layer.qkv.bias)
    torch.nn.init.normal_(layer.output.bias)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [2, 3])
def test_small_chunks_keep_every_promise(chunk: int) -> None:
    check_attention(partial(ChunkedAttention, chunk_size=chunk), fast=True)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_positions_keep_every_promise(positions: str) -> None:
    check_attention(partial(ChunkedAttention, chunk_size=3, positions=positions), fast=True)


def test_sequences_in_one_row_are_not_claimed_to_be_each_alone() -> None:
    report = check_attention(
        partial(ChunkedAttention, chunk_size=3), only=["packed_sequences_are_independent"], raises=False
    )
    [row] = report.rows
    assert row.outcome == "not applicable"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk", [N, N + 5])
def test_a_chunk_as_long_as_the_sequence_is_multi_head_attention(causal: bool, chunk: int) -> None:
    layer, multi = made(chunk_size=chunk, causal=causal), MultiAttention(D, H, causal=causal).double()
    multi.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(tokens()), multi(tokens()))
    shorter = made(chunk_size=N - 1, causal=causal)
    assert not torch.allclose(shorter(tokens()), multi(tokens()))


@pytest.mark.parametrize("causal", [True, False])
def test_each_chunk_is_multi_head_attention_by_itself(causal: bool) -> None:
    layer, multi = made(chunk_size=4, causal=causal), MultiAttention(D, H, causal=causal).double()
    multi.load_state_dict(layer.state_dict())
    wanted = torch.cat([multi(chunk) for chunk in tokens().split(4, 1)], 1)
    torch.testing.assert_close(layer(tokens()), wanted)
    torch.testing.assert_close(
        layer.attention_weights(tokens()), multi.attention_weights(tokens(), mask=masks.block_local(4))
    )


def test_long_sequences_take_the_window_path() -> None:
    layer, x = made(chunk_size=16, causal=True), tokens(257)
    with torch.no_grad():
        [path] = explain_path(layer, x)
    assert path.name == "window"
    assert "reaches 15 back and 0 ahead of 257 keys" in path.why


def test_a_windowed_cache_needs_no_mask_and_stays_small() -> None:
    layer, x, cache = made(chunk_size=4, causal=True), tokens(401), KVCache(401, window=4)
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
    layer, x = made(chunk_size=3, causal=True), tokens()
    pruned = prune_heads(layer, [1])
    with torch.no_grad():
        layer.output.weight.unflatten(1, (H, D // H))[:, 1] = 0
    torch.testing.assert_close(pruned(x), layer(x), rtol=0, atol=1e-13)
    assert (pruned.chunk_size, pruned.num_heads) == (3, 2)


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
def test_bad_options_are_refused(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^chunk_size {says}$"):
        ChunkedAttention(D, H, chunk_size=value)
