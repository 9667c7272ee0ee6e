"""Error messages of masks, and their old names."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from attnlab import masks


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


NAMES = {
    **vars(masks),
    **{"masks": masks, "torch": torch, "t": torch.tensor, "ones": ones, "floats": torch.ones},
    "integers": lambda *shape: torch.ones(shape, dtype=torch.long),
    "meta": torch.zeros(2, device="meta").long(),
    "heads": masks.per_head([masks.causal(), masks.sliding_window(2)]),
}

VALUE_ERRORS = {
    "sliding_window(0)": "at least 1, got 0",
    "sliding_window(2.0)": "integer of at least 1, got 2.0",
    "sliding_window(True)": "integer of at least 1, got True",
    "dilated(0, 2)": "dilated(size) must be an integer of at least 1, got 0",
    "dilated(2, 0)": "dilated(dilation) must be an integer of at least 1, got 0",
    "dilated(2, 1.5)": "dilated(dilation) must be an integer of at least 1, got 1.5",
    "block_local(-1)": "at least 1, got -1",
    "block_local(2, neighbors=0.0)": "block_local(neighbors=) must be an integer of at least 0",
    "block_local(2, neighbors=-1)": "block_local(neighbors=) must be an integer of at least 0",
    "random_blocks(2, 0, 1)": "random_blocks(count) must be an integer of at least 1, got 0",
    "random_blocks(2, 1, 0.5)": "random_blocks(seed) must be an integer",
    "random_blocks(2, 1, True)": "random_blocks(seed) must be an integer",
    "random_blocks(2, 1, t([1, 2]))": "of shape (), got torch.int64 of shape (2,)",
    "block_summary(2, 3)": "count (3) must be at most size (2)",
    "block_sparse(2, floats(2, 2))": "Boolean tensor (query blocks, key blocks)",
    "block_sparse(2, ones(2, 2, 2))": "got torch.bool of shape (2, 2, 2)",
    "block_sparse(3, ones(2, 2)).materialize(7)": "2 x 2, too small for 7 keys, which are 3 blocks",
    "per_head([])": "needs one mask per head, got none",
    "per_head([heads])": "already differs per head",
    "prefix(-1)": "at least 0, got -1",
    "prefix(2.5)": "integer of at least 0",
    "prefix(True)": "integer of at least 0",
    "prefix(floats(2))": "integers of shape (batch,), got torch.float32",
    "prefix(t([2, -1]))": "at least 0, got -1",
    "padding(integers(2, 2))": "of shape (2, 2)",
    "padding(ones(2))": "integers of shape (batch,), got torch.bool",
    "padding(t([2, -1]))": "at least 0, got -1",
    "padding(t([1]), side='top')": "'right' or 'left', not 'top'",
    "padding(t([1]), side='left')": "needs max_length=, the padded length",
    "padding(t([9]), side='left', max_length=7)": "9 tokens, more than max_length=7",
    "padding(t([9]), max_length=7)": "9 tokens, more than max_length=7",
    "padding(t([2, 8])).materialize(7)": "counts 8 tokens in one sequence",
    "(~padding(t([8]))).materialize(7)": "there are only 7 keys",
    "padding(meta).materialize(3)": "is on meta, the tokens are on cpu; move it with mask.to(...)",
    "documents(floats(7))": "integers of shape (length,) or (batch, length)",
    "documents(ones(7))": "got torch.bool",
    "documents(t([0, 0, 1])).materialize(5)": "has 3 positions, but there are 5",
    "(causal() & documents(t([0, 0, 1]))).materialize(5)": "has 3 positions, but there are 5",
    "(~documents(t([0, 0, 1]))).materialize(5)": "has 3 positions, but there are 5",
    "per_head([causal(), documents(t([0, 0, 1]))]).materialize(5)": "has 3 positions, but there are 5",
    "from_tensor(ones(7))": "not (7,)",
    "from_tensor(ones(2, 7)).materialize(7)": "2 x 7 (queries x keys)",
    "from_tensor(ones(5, 7)).materialize(7)": "use from_attention_mask where True means a real token, and "
    "from_key_padding_mask where True means a token to",
    "from_tensor(ones(3, 7, 7)).bind(7, shape=(2, 3))": "a mask per head needs four, (1, heads, queries, keys)",
    "from_tensor(ones(5, 3, 7, 7)).bind(7, shape=(2, 3))": "(5, 3, 7, 7), which does not fit (batch, heads, queries, "
    "keys) = (2, 3, 7, 7)",
    "from_key_padding_mask(ones(2, 3)).materialize(5)": "(2, 3), (batch, keys), but there",
    "to_key_padding_mask(causal(), 5)": "use to_attn_mask",
    "to_attention_mask(sliding_window(2), 5)": "cannot be given as attention_mask",
    "from_attn_mask(ones(6, 5, 5))": "needs num_heads=",
    "from_attn_mask(ones(6, 5, 5), num_heads=4)": "a divisor",
    "to_attn_mask(from_tensor(ones(2, 3, 5, 5)), 5)": "needs num_heads=3, not 1",
    "to_attn_mask(heads, 5)": "needs num_heads=2, not 1",
    "to_attn_mask(padding(t([2, 5])), 5, batch_size=3)": "needs batch_size=2, not 3",
    "from_cu_seqlens(t([1, 2]))": "must start at 0 and must not decrease",
    "from_cu_seqlens(t([0, 5, 3]))": "must not decrease",
    "from_cu_seqlens(t([0]))": "must start at 0",
    "from_cu_seqlens(t([0.0, 2.5]))": "got torch.float32 of shape (2,)",
    "from_cu_seqlens(t([0, 5]), total=3)": "ends at 5, more than total=3",
    "from_cu_seqlens(meta)": "give total=",
    "to_cu_seqlens(causal())": "only documents(ids)",
    "to_cu_seqlens(documents(t([0, 1, 0])))": "interrupted",
    "to_cu_seqlens(documents(integers(2, 3)))": "over one row",
}
TYPE_ERRORS = {
    "block_sparse(2, [[True]])": "torch.tensor",
    "padding([2, 3])": "padding(lengths) must be a tensor, got list; make one with torch.tensor",
    "documents([0, 1])": "torch.tensor",
    "from_tensor(floats(5, 7))": "give them as attn_bias=",
    "from_tensor(integers(5, 7))": "from_attention_mask",
    "from_tensor([[True]])": "torch.tensor",
    "bool(causal())": "combine masks with & (both allow), | (either allows) and ~ (not)",
    "causal() and sliding_window(3)": "causal() is neither true nor false",
    "not heads": "neither true nor false",
    "as_mask('causal')": "not str",
    "causal() & 3": "not int",
    "causal() | floats(5, 5)": "give them as attn_bias=",
    "from_key_padding_mask(floats(2, 7))": "Boolean of shape (batch, keys)",
    "from_key_padding_mask([[True]])": "torch.tensor",
    "from_attn_mask(torch.full((5, 5), 0.5))": "pass it as attn_bias=",
    "from_attn_mask(integers(5, 5))": "Boolean or float",
    "from_attn_mask(ones(5))": "of shape (5,)",
    "from_attention_mask(t([[2, 0]]))": "1 (real) or 0 (padding)",
    "from_attention_mask(t([1, 0]))": "(batch, keys)",
}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (call, error, text)
        for error, table in ((ValueError, VALUE_ERRORS), (TypeError, TYPE_ERRORS))
        for call, text in table.items()
    ],
)
def test_errors(call: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        eval(call, NAMES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("masks.window(3)", "sliding_window(3)"),
        ("masks.every(2)", "strided(2)"),
        ("masks.summaries(3)", "block_summary(3)"),
        ("masks.by_head([causal()])", "causal()"),
        ("masks.blocks(2, around=1)", "block_local(2, neighbors=1)"),
        ("masks.blocks(4, ones(2, 2))", "block_sparse(4, ones(2, 2))"),
        ("padding(t([2, 5]), total=7, queries=True)", "padding(t([2, 5]), mask_queries=True)"),
    ],
)
def test_old_names_are_accepted_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match="renamed to|use padding"):
        mask = eval(old, NAMES)
    assert repr(mask) == repr(eval(new, NAMES))
