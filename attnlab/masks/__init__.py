"""Who may look at whom: an algebra of masks.

``causal() & sliding_window(128) & padding(lengths)``: read aloud, it is the specification. A mask is a rule over the
positions of a query and a key, not a matrix; it becomes one only when a length is known. One polarity
everywhere: True means *may look*. Other conventions are converted by name (`from_key_padding_mask`,
`from_attn_mask`, `from_attention_mask`, `from_cu_seqlens`), never by guessing.

Queries are aligned with keys at the end: with more keys than queries (a cache, a shorter query) the last query
sees all keys. ``offset`` overrides this: it is the position of the first query among the keys.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

from typing import Any

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
from attnlab.masks.mask import Mask, as_mask, from_tensor
from attnlab.masks.rules import (
    block_local,
    block_sparse,
    block_summary,
    causal,
    dilated,
    documents,
    global_tokens,
    padding,
    per_head,
    prefix,
    random_blocks,
    sliding_window,
    strided,
)

__all__ = [
    "BoundMask",
    "Mask",
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

_RENAMED = {"window": sliding_window, "every": strided, "summaries": block_summary, "by_head": per_head}


def __getattr__(name: str) -> Any:
    """The names of earlier versions."""
    if name in _RENAMED:
        return _RENAMED[name]
    raise AttributeError(f"module 'attnlab.masks' has no attribute {name!r}")
