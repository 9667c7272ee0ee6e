"""DeepSeek sparse attention: a small indexer selects the keys of each query, and softmax attention uses only these."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, Mask
from attnlab.masks.bound import Index
from attnlab.nn.attention import Card, check_positive_int, make_linear
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.backends.eager import masked_softmax
from attnlab.ops.backends.tiles import by_tiles
from attnlab.ops.rowwise import at_least_float32, row_tiles, scaled_dot_product
from attnlab.ops.selection import TEMPORARY_VALUES, SelectedMap, top_k
from attnlab.positions import Positions, Rotary
from attnlab.utils.tracing import autocast_dtype, full_precision


class DeepSeekSparseAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over the k keys with the largest ``I_ts = Σ_j w_tj ReLU(q_tj · k_s)``.

    All heads share the selection. With k keys or fewer it is softmax attention over all of them.

    The output has no gradient in the parameters of the indexer, which computes I: which keys are selected changes in
    steps. `auxiliary_loss` trains them, as in the paper, and ``attnlab train`` adds it to the loss of the task.

    Source: DeepSeek-AI 2025, "DeepSeek-V3.2", section 2.1. The layer norm of the index keys and the scale
    1 / √(h_I d_I) follow its code. The paper adds the selection to multi-head latent attention; here the keys and
    values are those of multi-head attention.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        top_k: k, the number of keys that a query attends to.
        index_heads: h_I, the number of heads of the indexer.
        index_dim: d_I, the width of a head of the indexer.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections of multi-head attention have a bias; those of the indexer have none.
        positions: the positional encoding of queries and keys, also in the indexer: none or rotary, optionally with
            settings, such as "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a size below 1, other positions, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="DeepSeek sparse attention",
        summary="a small indexer scores all keys, and each query attends to the k keys with the largest index scores",
        paper="DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models",
        authors="DeepSeek-AI",
        year=2025,
        arxiv="2512.02556",
        kind="approximation",
        heads="h",
        time="n²·h_I·d_I + n·k·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices with k entries per row, in the same columns for all heads",
        use_case="long contexts with many wide heads, in which attention to n keys costs more than the indexer",
        supports=("causal", "arbitrary_mask", "context", "cache", "weights"),
        parent="multihead",
    )

    supports_packing = False  # the index scores of a packed row would cover all pairs of its documents

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        top_k: int = 64,
        index_heads: int = 4,
        index_dim: int = 16,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if self.positions.name not in ("none", "rotary"):
            raise ValueError(f"positions of DeepSeek sparse attention are none or rotary, not {self.positions.name}")
        self.top_k = check_positive_int("top_k", top_k)
        self.index_heads, self.index_dim = index_heads, index_dim
        self.indexer = LightningIndexer(embed_dim, index_heads, index_dim, positions=self.positions, **factory)

    def is_continuous(self, length: int) -> bool:
        """Whether all keys are selected in a sequence of this length."""
        return length <= self.top_k

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,  # not supported: the indexer does not know it
        context: Float[Tensor, "B M D"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        first = 0 if cache is None else cache.num_seen
        Q, K, V = self._project_qkv(x, context)
        Q, K, _ = self._apply_positions(Q, K, None, context, cache)
        index = [t.detach() for t in self.indexer(x, context, first)]
        if cache is not None:
            K, V, index[2] = cache.update(K, V, index[2])
        heads = self._selected_map(Q, K, mask, index).apply(V, dropout=self.dropout if self.training else 0.0)
        return self._merge_heads(heads, x)

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> SelectedMap:
        Q, K, _ = self._project_qkv(x, context)
        Q, K, _ = self._apply_positions(Q, K, None, context)
        return self._selected_map(Q, K, mask, [t.detach() for t in self.indexer(x, context)])

    def _selected_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, index: list[Tensor]
    ) -> SelectedMap:
        q, w, k = index

        def select(rows: Index, keys: Index, permitted: Tensor | None) -> Tensor:
            return top_k(index_scores(q[:, :, rows], w[:, :, rows], k[:, keys]), self.top_k, permitted)

        return SelectedMap(Q, K, mask, select, self.top_k)

    def auxiliary_loss(
        self, x: Float[Tensor, "B N D"], *, mask: Mask | Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Return the loss of the indexer: the mean over the queries of KL(p ‖ softmax(I)) over the selected keys.

        p is the mean over the heads of the attention weights. Only the parameters of the indexer have a gradient
        (section 2.1.1, equation 4). Takes what `forward` takes.
        """
        x, bound, options = self._validate(x.detach(), mask, None, context)
        with torch.no_grad():
            Q, K, _ = self._project_qkv(x, options.get("context"))
            Q, K, _ = self._apply_positions(Q, K, None, context)
        q, w, k = self.indexer(x, options.get("context"))
        attention = self._selected_map(Q, K, bound, [q.detach(), w.detach(), k.detach()])

        def part(rows: slice, keys: Index) -> Tensor:
            chosen = attention.selected(rows, keys)
            p = masked_softmax(scaled_dot_product(Q[:, :, rows], K[:, :, keys]), chosen).mean(1, keepdim=True)
            scores = index_scores(q[:, :, rows], w[:, :, rows], k[:, keys])
            if chosen is not None:
                scores = scores.masked_fill(~chosen.any(1, keepdim=True), torch.finfo(scores.dtype).min)
            p = p.to(scores.dtype)
            divergence = (torch.special.xlogy(p, p) - p * scores.log_softmax(-1)).sum(-1, keepdim=True)
            return torch.cat([divergence, (p.sum(-1, keepdim=True) > 0).to(scores.dtype)], -1)  # (B, 1, n, 2)

        cost = len(x) * self.num_heads * TEMPORARY_VALUES
        divergence, count = by_tiles(part, row_tiles(Q, bound, K.shape[2], cost), Q).sum((0, 1, 2))
        return divergence / count.clamp(min=1)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)  # all heads share the indexer

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, top_k={self.top_k}"


class LightningIndexer(nn.Module):
    """The queries q, weights w and keys k of the index scores.

    Args:
        embed_dim: D.
        num_heads: h_I.
        head_dim: d_I.
        positions: those of the layer; rotary positions rotate q and k in the same way.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        positions: Positions,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_positive_int("index_heads", num_heads)
        self.head_dim = check_positive_int("index_dim", head_dim)
        project = partial(make_linear, embed_dim, bias=False, device=device, dtype=dtype)
        self.query, self.weight, self.key = project(num_heads * head_dim), project(num_heads), project(head_dim)
        self.key_norm = nn.LayerNorm(head_dim, eps=1e-6, device=device, dtype=dtype)
        self.positions = Positions()
        if isinstance(positions, Rotary):
            if head_dim % 2:
                raise ValueError(f"rotary positions need an even index_dim, got {head_dim}")
            self.positions = Rotary(head_dim, base=positions.base, layout=positions.layout, scaling=positions.scaling)

    def forward(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"] | None = None, first: int = 0
    ) -> tuple[Float[Tensor, "B h_I N d_I"], Float[Tensor, "B h_I N"], Float[Tensor, "B M d_I"]]:
        """Return q, w and k, in at least float32: rounding may change which keys are selected.

        ``first`` is the position of the first token.
        """
        context = x if context is None else context
        if autocast_dtype(x.device) is not None:  # then the parameters are float32
            x, context = at_least_float32(x), at_least_float32(context)
        with full_precision(x.device):
            q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            w = self.weight(x).mT * (self.num_heads * self.head_dim) ** -0.5
            k = self.key_norm(self.key(context))
            q, k = self.positions.apply_rotary(q, first), self.positions.apply_rotary(k, first)
        return at_least_float32(q), at_least_float32(w), at_least_float32(k)


def index_scores(
    q: Float[Tensor, "B h_I N d_I"], w: Float[Tensor, "B h_I N"], k: Float[Tensor, "B M d_I"]
) -> Float[Tensor, "B 1 N M"]:
    """``I_ts = Σ_j w_tj ReLU(q_tj · k_s)``, one head at a time."""
    total = None
    with full_precision(q.device):
        for j in range(q.shape[1]):
            products, weight = torch.relu(q[:, j] @ k.mT), w[:, j].unsqueeze(-1)
            total = products * weight if total is None else torch.addcmul(total, products, weight)
    assert total is not None
    return total.unsqueeze(1)
