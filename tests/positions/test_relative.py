"""Relative positions depend on distances alone: padding, packing, caching and tiling do not change the result."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlab import KVCache, check_attention
from attnlab.masks import documents, from_tensor, padding, sliding_window
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import UnsupportedError
from attnlab.ops.bias import RelativeBias
from attnlab.ops.dispatch import explain_path

D, H = 12, 3
SCHEMES = [
    "rotary",
    "rotary(base=500, rotary_fraction=0.5, layout=interleaved)",
    "rotary(scaling=yarn, factor=4, original_max_length=64)",
    "alibi",
    "t5(num_buckets=8, max_distance=20)",
]

schemes = pytest.mark.parametrize("scheme", SCHEMES)
lengths = st.integers(1, 160)


def layer(scheme: str, *, causal: bool = True) -> MultiAttention:
    torch.manual_seed(0)
    made = MultiAttention(D, H, positions=scheme, causal=causal).double().eval()
    torch.nn.init.normal_(made.qkv.weight, std=0.7)  # scores far from uniform, so that a wrong position shows
    return made


def tokens(length: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


@schemes
@given(length=lengths, shift=st.integers(0, 90), causal=st.booleans())
@settings(max_examples=20)
@torch.no_grad()
def test_left_padding_does_not_shift_positions(scheme: str, length: int, shift: int, causal: bool) -> None:
    attend, x = layer(scheme, causal=causal), tokens(length)
    padded = torch.cat([tokens(shift) if shift else x[:, :0], x], 1)
    mask = padding(torch.tensor([length]), side="left", max_length=shift + length)
    torch.testing.assert_close(attend(padded, mask=mask)[:, shift:], attend(x))


@schemes
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5), causal=st.booleans())
@settings(max_examples=20)
@torch.no_grad()
def test_packed_sequences_match_single_ones(scheme: str, sizes: list[int], causal: bool) -> None:
    attend, parts = layer(scheme, causal=causal), [tokens(size) for size in sizes]
    numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    row = attend(torch.cat(parts, 1), mask=documents(numbers))
    torch.testing.assert_close(row, torch.cat([attend(part) for part in parts], 1))


@schemes
@given(length=lengths, cuts=st.lists(st.integers(0, 160), max_size=6), size=st.none() | st.integers(1, 40))
@settings(max_examples=20)
@torch.no_grad()
def test_cached_steps_match_the_full_pass(scheme: str, length: int, cuts: list[int], size: int | None) -> None:
    attend, x = layer(scheme), tokens(length, batch=2)
    mask = None if size is None else sliding_window(size)
    cache = KVCache(length, window=size)
    edges = [0, *sorted(cut for cut in cuts if cut < length), length]
    parts = [attend(x[:, a:b], mask=mask, cache=cache) for a, b in pairwise(edges)]
    torch.testing.assert_close(torch.cat(parts, 1), attend(x, mask=mask))


@schemes
@given(length=st.integers(130, 300), size=st.integers(1, 60), causal=st.booleans())
@settings(max_examples=7)
@torch.no_grad()
def test_a_window_matches_its_matrix(scheme: str, length: int, size: int, causal: bool) -> None:
    attend, x = layer(scheme, causal=causal), tokens(length)
    bias = torch.randn(H, length, length, dtype=torch.float64)
    matrix = from_tensor(sliding_window(size).materialize(length))
    for options in ({}, {"attn_bias": bias}, {"attn_bias": bias[:, :1]}):
        torch.testing.assert_close(attend(x, mask=sliding_window(size), **options), attend(x, mask=matrix, **options))


@schemes
@torch.no_grad()
def test_permuted_tokens_change_the_output(scheme: str) -> None:
    attend, x = layer(scheme, causal=False), tokens(7)
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    assert not torch.allclose(attend(x[:, order])[:, order], attend(x), atol=1e-3)


# The checks that positions can affect: they see q, k, the scores, lengths and offsets, but no shapes, dtypes of
# arguments, dropout or copies, which test_contract checks for every mechanism without positions.
POSITION_CHECKS = [
    *("no_future_leakage", "causal_prefix_invariance", "no_future_leakage_with_mask", "permutation_equivariance"),
    *("padding_invariance", "left_padding_invariance", "padding_with_masked_queries", "nan_in_padding_is_ignored"),
    *("packed_sequences_are_independent", "matches_reference_outputs", "matches_reference_gradients"),
    *("weights_reproduce_output", "attention_map_matches_weights", "attn_bias_adds_to_scores", "eval_is_stateless"),
    *("gradients_match_finite_differences", "second_derivatives_exact_or_raise", "extreme_scores_stay_finite"),
    *("bfloat16_autocast", "low_precision_accuracy", "cache_matches_full_pass"),
    *("growing_cache_matches_full_pass", "windowed_cache_matches_full_pass", "cache_crop_and_reorder"),
    *("meta_device_initialization", "device_and_dtype_arguments", "submodules_are_called"),
]


@pytest.mark.slow
@schemes
def test_conformance_with_positions(scheme: str) -> None:
    """tests/integrations/test_interop.py exports layers with positions."""
    report = check_attention(partial(MultiAttention, positions=scheme), only=POSITION_CHECKS)
    assert report["matches_reference_outputs"].outcome == "pass"
    assert report["cache_matches_full_pass"].outcome == "pass"
    assert report["permutation_equivariance"].outcome == "not applicable"


def test_positions_remove_capabilities() -> None:
    attend = MultiAttention(D, H, positions="rotary")
    with pytest.raises(UnsupportedError, match="does not support context"):
        attend(torch.zeros(1, 2, D), context=torch.zeros(1, 3, D))
    assert MultiAttention(D, H).supports("context")


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_batches_materialize_no_bias_matrix(positions: str, causal: bool, monkeypatch: Any) -> None:
    attend, x, lengths = layer(positions, causal=causal), tokens(199, batch=3), torch.tensor([199, 67, 101])
    mask, expected = padding(lengths, mask_queries=True), [attend(x[b : b + 1, :n]) for b, n in enumerate(lengths)]
    monkeypatch.setattr(RelativeBias, "tensor", lambda self: pytest.fail("the whole matrix was materialized"))
    assert [record.name for record in explain_path(attend, x, mask=mask)] == ["packed", "segments"]
    for row, alone in zip(attend(x, mask=mask), expected, strict=True):
        torch.testing.assert_close(row[: alone.shape[1]], alone[0])


@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_windows_materialize_no_bias_matrix(positions: str, monkeypatch: Any) -> None:
    attend, x = layer(positions), tokens(301)
    expected = attend(x, mask=from_tensor(sliding_window(7).materialize(301)))
    monkeypatch.setattr(RelativeBias, "tensor", lambda self: pytest.fail("the whole matrix was materialized"))
    for options in ({}, {"attn_bias": torch.ones(301)}):
        torch.testing.assert_close(attend(x, mask=sliding_window(7), **options), expected)
    assert explain_path(attend, x, mask=sliding_window(7))[0].name == "window"


@pytest.mark.parametrize("positions", ["rotary(base=5)", "alibi", "t5"])
def test_to_torch_refuses_positions(positions: str) -> None:
    message = f"nn.MultiheadAttention has no positional encoding, and this layer has {positions.split('(')[0]}"
    with pytest.raises(ValueError, match=message):
        MultiAttention(D, H, positions=positions).to_torch()


def test_grouped_queries_with_rotary_positions() -> None:
    grouped = GroupedQueryAttention(D, 4, num_kv_heads=2, positions="rotary(rotary_fraction=0.67)")
    assert grouped.positions.width == 2  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="rotary positions need an even head_dim, not 3"):
        GroupedQueryAttention(D, 4, num_kv_heads=2, positions="rotary")
