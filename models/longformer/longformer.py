"""Longformer: a token looks at its neighbours and at a few global tokens, and those look at everything."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask, Mask, from_tensor, global_tokens, sliding_window
from attnlab.nn.attention import Card, check_positive_int, make_linear, renamed_options
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.bias import cut
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions


class LongformerAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over near and global keys; a global token has W_Q, W_K, W_V of its own.

    Source: Beltagy et al. 2020, "Longformer: The Long-Document Transformer", section 3.1.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        window_size: w, how many keys a token reaches on a side, itself among them (the paper's window is 2w - 1).
        num_global: g, how many of the first tokens look at everything and are looked at by everything.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Longformer attention",
        summary="a window, and a few global tokens that look at everything and are looked at by everything",
        paper="Longformer: The Long-Document Transformer",
        authors="Beltagy et al.",
        year=2020,
        arxiv="2004.05150",
        kind="exact",
        heads="h",
        time="n·(w + g)·d + n·d²",
        memory="n·d",
        representation="h softmax maps of a band, a few rows and a few columns",
        use_case="long documents with a token that answers for the whole: classification, question answering",
        supports=("causal", "mask", "attn_bias", "weights"),
        parent="slidingwindow",
    )

    @renamed_options(window="window_size")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        window_size: int = 64,
        num_global: int = 1,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary", "alibi", "t5"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            causal=causal,
            dropout=dropout,
            bias=bias,
            positions=positions,
            device=device,
            dtype=dtype,
        )
        self.window_size = check_positive_int("window_size", window_size)
        self.num_global = check_positive_int("num_global", num_global)
        self.qkv_global = make_linear(embed_dim, 3 * embed_dim, bias=bias, device=device, dtype=dtype)
        self.qkv_global.load_state_dict(self.qkv.state_dict())  # they start alike, as in the paper

    def reset_parameters(self) -> None:
        """Draw the projections anew; both sets start alike."""
        super().reset_parameters()
        self.qkv_global.load_state_dict(self.qkv.state_dict())

    def attention_pattern(self, length: int) -> Mask:
        """Near, or global on either side."""
        return sliding_window(self.window_size) | global_tokens(self.num_global)

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        near, few, V, V_g = self._both(x, mask, attn_bias)
        dropout = self.dropout if self.training else 0.0
        top, heads = few.apply(V_g, dropout=dropout), near.apply(V, dropout=dropout)
        return self._merge_heads(heads.slice_scatter(top, 2, 0, top.shape[2]), x)

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> AttentionMap:
        near, few, _, _ = self._both(x, mask, attn_bias)
        return FirstRows(few, near)

    def _apply_weights(
        self, weights: Float[Tensor, "B H N N"], x: Float[Tensor, "B N D"], context: Tensor | None = None
    ) -> Float[Tensor, "B N D"]:
        (_, _, V), (_, _, V_g), g = self._project_qkv(x, None), self._project_global(x), self.num_global
        return self._merge_heads(torch.cat([weights[:, :, :g] @ V_g, weights[:, :, g:] @ V], 2), x)

    def _both(
        self, x: Tensor, mask: BoundMask | None, attn_bias: Tensor | None
    ) -> tuple[SoftmaxMap, SoftmaxMap, Tensor, Tensor]:
        """The map of every token by the first set of projections, that of the global ones by the second, and values."""
        assert mask is not None  # it holds the pattern
        Q, K, V = self._project_qkv(x, None)
        Q, K, added = self._apply_positions(Q, K, attn_bias, None)
        Q_g, K_g, V_g = self._project_global(x)  # g queries, and keys and values of all
        Q_g, K_g = self.positions.apply_rotary(Q_g), self.positions.apply_rotary(K_g)
        rows, every = slice(0, Q_g.shape[2]), slice(0, K_g.shape[2])
        own = from_tensor(mask.tile(rows, every)).bind(rows.stop, every.stop, offset=0, device=x.device)
        few = SoftmaxMap(Q_g, K_g, own, None if added is None else cut(added, rows, every))
        return SoftmaxMap(Q, K, mask, added), few, V, V_g

    def _project_global(self, x: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        # Called on all tokens and cut afterwards: cut out of its weights, the product would miss what was added to it.
        Q, K, V = self._heads(self.qkv_global(x)).chunk(3, 1)
        return Q[:, :, : self.num_global], K, V

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        D = self.qkv_sizes[0]
        own = head_channels(heads, self.head_dim)
        select_features(self.qkv_global, rows=[part * D + i for part in range(3) for i in own])
        super()._select_heads(heads, groups)


class FirstRows(AttentionMap):
    """The map of a core whose first rows are those of another."""

    def __init__(self, first: AttentionMap, rest: AttentionMap) -> None:
        super().__init__(rest.shape, rest._like)
        self._first, self._rest = first, rest

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each query gets."""
        top = self._first.apply(values, dropout=dropout)
        return self._rest.apply(values, dropout=dropout).slice_scatter(top, 2, 0, top.shape[2])

    def _rows(self, rows: Tensor) -> Tensor:
        count = self._first.shape[2]
        own = self._first._rows(rows.clamp(max=count - 1))
        return torch.where((rows < count)[:, None], own, self._rest._rows(rows))
