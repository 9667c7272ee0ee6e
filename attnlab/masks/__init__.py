"""Attention masks that are combined with ``&``, ``|`` and ``~``, as in ``causal() & sliding_window(128)``.

A mask is a rule over query and key positions. It becomes a matrix only if it is evaluated for a length. True means
*attend* everywhere; masks of other libraries are converted by `from_key_padding_mask`, `from_attn_mask`,
`from_attention_mask` and `from_cu_seqlens`.

Queries are aligned with keys at the end: with more keys than queries (a cache, a shorter query) the last query
attends to all keys under ``causal()``. ``offset``, the position of the first query among the keys, overrides this.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

import warnings
from typing import Any

from attnlab.masks.block import (
    BlockLocalMask,
    BlockSparseMask,
    BlockSummaryMask,
    RandomBlocksMask,
    block_local,
    block_sparse,
    block_summary,
    random_blocks,
)
from attnlab.masks.bound import BoundMask
from attnlab.masks.convert import (
    from_attention_mask,
    from_attn_mask,
    from_cu_seqlens,
    from_key_padding_mask,
    to_attention_mask,
    to_attn_mask,
    to_cu_seqlens,
    to_key_padding_mask,
)
from attnlab.masks.local import (
    CausalMask,
    GlobalTokensMask,
    SlidingWindowMask,
    StridedMask,
    causal,
    dilated,
    global_tokens,
    sliding_window,
    strided,
)
from attnlab.masks.mask import AndMask, Mask, NotMask, OrMask, TensorMask, as_mask, from_tensor
from attnlab.masks.per_head import PerHeadMask, per_head
from attnlab.masks.sequence import KeyMask, PaddingMask, PrefixMask, SegmentMask, documents, padding, prefix

__all__ = [
    "AndMask",
    "BlockLocalMask",
    "BlockSparseMask",
    "BlockSummaryMask",
    "BoundMask",
    "CausalMask",
    "GlobalTokensMask",
    "KeyMask",
    "Mask",
    "NotMask",
    "OrMask",
    "PaddingMask",
    "PerHeadMask",
    "PrefixMask",
    "RandomBlocksMask",
    "SegmentMask",
    "SlidingWindowMask",
    "StridedMask",
    "TensorMask",
    "as_mask",
    "block_local",
    "block_sparse",
    "block_summary",
    "causal",
    "dilated",
    "documents",
    "from_attention_mask",
    "from_attn_mask",
    "from_cu_seqlens",
    "from_key_padding_mask",
    "from_tensor",
    "global_tokens",
    "padding",
    "per_head",
    "prefix",
    "random_blocks",
    "sliding_window",
    "strided",
    "to_attention_mask",
    "to_attn_mask",
    "to_cu_seqlens",
    "to_key_padding_mask",
]


def _blocks(size: int, pattern: Any = None, *, around: int = 0) -> Mask:
    return block_local(size, neighbors=around) if pattern is None else block_sparse(size, pattern)


_RENAMED = {
    "window": sliding_window,
    "every": strided,
    "summaries": block_summary,
    "by_head": per_head,
    "blocks": _blocks,
}


def __getattr__(name: str) -> Any:
    """Return what has been renamed under its old name, with a warning."""
    if name not in _RENAMED:
        raise AttributeError(f"module 'attnlab.masks' has no attribute {name!r}")
    new = "block_local or block_sparse" if name == "blocks" else _RENAMED[name].__name__
    warnings.warn(f"attnlab.masks.{name} has been renamed to {new}", FutureWarning, stacklevel=2)
    return _RENAMED[name]
