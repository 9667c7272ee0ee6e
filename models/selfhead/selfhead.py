"""One head of scaled dot-product self-attention, written so that the code reads like the formula."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, Card, accepts_emd_dim, make_linear
from attnlab.nn.cache import KVCache
from attnlab.ops.softmax import SoftmaxMap, softmax_attention


class SelfAttention(Attention):
    """``softmax(Q Kᵀ / √d) V`` with one head.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Self-attention",
        summary="one head: each token attends to all tokens, with one matrix of attention weights",
        paper="Attention Is All You Need",
        authors="Vaswani et al.",
        year=2017,
        arxiv="1706.03762",
        kind="exact",
        heads="1",
        time="n²·d + n·d²",
        memory="n·d",
        representation="one softmax attention matrix",
        use_case="learning how attention works; tasks that read one position at a time",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights", "equivariant"),
        parent="additive",
    )

    supports_packing = True

    @accepts_emd_dim
    def __init__(
        self,
        embed_dim: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, causal=causal, dropout=dropout)
        self.query = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.key = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.value = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.output = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def _build_map(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, attn_bias: Tensor | None = None
    ) -> SoftmaxMap:
        # softmax(Q Kᵀ / √d), (B, 1, N, N): one row per query, one column per key
        return SoftmaxMap(self.query(x), self.key(x), mask, attn_bias)

    def _apply_weights(self, weights: Float[Tensor, "B 1 N N"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # the average of the values, weighted by the attention weights
        return self.output((weights @ self._values(x)).squeeze(1))

    def _values(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 N D"]:
        return self.value(x).unsqueeze(1)

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        # softmax(Q Kᵀ / √d) V in one fused kernel, which never materializes the weights
        Q, K, V = self.query(x), self.key(x), self.value(x)
        if cache is not None:
            K, V = cache.update(K, V)  # the keys and values of all tokens so far
        dropout = self.dropout if self.training else 0.0
        return self.output(softmax_attention(Q, K, V, mask, attn_bias, dropout=dropout))
