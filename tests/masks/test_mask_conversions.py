"""Conversions from and to the masks of other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn_masks import KEYS, B, H, booleans, matrix
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention


@given(booleans(B, KEYS))
def test_round_trips_of_a_mask_of_keys(real: Tensor) -> None:
    for name, theirs in (("key_padding_mask", ~real), ("attention_mask", real.long())):
        mask = getattr(masks, f"from_{name}")(theirs)
        assert torch.equal(matrix(mask)[:, 0, 0], real)
        assert torch.equal(getattr(masks, f"to_{name}")(mask, 5, KEYS), theirs)


@given(booleans(5, KEYS), booleans(B * H, 5, KEYS))
def test_attn_mask_round_trip(one: Tensor, each: Tensor) -> None:
    for theirs in (one, torch.zeros(5, KEYS).masked_fill(one, -torch.inf)):
        assert torch.equal(masks.to_attn_mask(masks.from_attn_mask(theirs), 5, KEYS), one)
    mask = masks.from_attn_mask(each, num_heads=H)
    assert torch.equal(masks.to_attn_mask(mask, 5, KEYS, num_heads=H), each)
    assert torch.equal(matrix(mask, 5), ~each.view(B, H, 5, KEYS))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_cu_seqlens_round_trip(lengths: list[int]) -> None:
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    mask = masks.from_cu_seqlens(boundaries)
    assert torch.equal(masks.to_cu_seqlens(mask), boundaries)
    assert mask.materialize(sum(lengths)).sum() == sum(n * n for n in lengths)


def test_to_attn_mask_expands_over_heads() -> None:
    result = masks.to_attn_mask(masks.padding(torch.tensor([2, 5])), 3, KEYS, num_heads=H)
    assert result.shape == (B * H, 3, KEYS)
    assert result[:H, :, 2:].all()
    assert not result[H:, :, :5].any()


def test_a_mask_per_head_that_is_the_same_for_all_heads_is_a_mask_of_keys() -> None:
    same = masks.per_head([masks.prefix(3), masks.prefix(3) & masks.prefix(5)])
    assert torch.equal(masks.to_attention_mask(same, KEYS), torch.tensor([[1, 1, 1, 0, 0, 0, 0]]))


# The output of `nn.MultiheadAttention` with its masks is the truth.

IGNORED = torch.zeros(B, KEYS, dtype=torch.bool)
HIDDEN = torch.rand(B * H, KEYS, KEYS, generator=torch.Generator().manual_seed(0)) > 0.6
IGNORED[0, 3:], IGNORED[1, :2] = True, True
HIDDEN[:, :, 2:4], IGNORED[:, 2] = False, False  # no fully masked row, which nn.MultiheadAttention makes NaN
LENGTHS = masks.padding(torch.tensor([3, 7]))
RULE = masks.causal() & masks.sliding_window(3) | masks.prefix(1)
PER_HEAD = masks.per_head([masks.causal(), masks.sliding_window(3), masks.prefix(2)])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"key_padding_mask": IGNORED, "attn_mask": HIDDEN},
            masks.from_key_padding_mask(IGNORED) & masks.from_attn_mask(HIDDEN, num_heads=H),
        ),
        (
            {
                "key_padding_mask": masks.to_key_padding_mask(LENGTHS, KEYS),
                "attn_mask": masks.to_attn_mask(RULE, KEYS),
            },
            LENGTHS & RULE,
        ),
        ({"attn_mask": masks.to_attn_mask(PER_HEAD, KEYS, num_heads=H, batch_size=B)}, PER_HEAD),
        ({"attn_mask": ~PER_HEAD.materialize(KEYS).repeat(B, 1, 1, 1).flatten(0, 1)}, PER_HEAD.materialize(KEYS)),
    ],
    ids=["from", "to", "per head", "a materialized mask per head"],
)
def test_masks_match_those_of_multihead_attention(theirs: dict[str, Tensor], ours: Any) -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(5 * H, H, batch_first=True, dtype=torch.float64)
    layer, x = MultiAttention.from_torch(reference), torch.randn(B, KEYS, 5 * H, dtype=torch.float64)
    out, weights = reference(x, x, x, average_attn_weights=False, **theirs)
    torch.testing.assert_close(layer(x, mask=ours), out)
    torch.testing.assert_close(layer.attention_weights(x, mask=ours), weights)
