"""``SparseAttention`` of native-sparse-attention-pytorch."""

from __future__ import annotations

from native_sparse_attention_pytorch import SparseAttention as Theirs

from peers.adapters.base import Adapter


class SparseAttention(Adapter):
    """The sizes are those of its documentation; no mask."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False) -> None:
        sizes = {"compress_block_size": 4, "compress_block_sliding_stride": 2}
        sizes |= {"sliding_window_size": 2, "selection_block_size": 4, "num_selected_blocks": 2}
        super().__init__(Theirs(dim=dim, dim_head=dim // heads, heads=heads, causal=causal, **sizes))
