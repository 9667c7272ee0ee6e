"""native-sparse-attention-pytorch's ``SparseAttention``, with the sizes of its page; causal only where told."""

from __future__ import annotations

from native_sparse_attention_pytorch import SparseAttention as Theirs
from torch import Tensor, nn


class SparseAttention(nn.Module):
    """It takes no mask."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.inner = Theirs(
            dim=dim,
            dim_head=dim // heads,
            heads=heads,
            causal=causal,
            sliding_window_size=2,
            compress_block_size=4,
            compress_block_sliding_stride=2,
            selection_block_size=4,
            num_selected_blocks=2,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        return self.inner(x)
