"""Longformer: a sliding window, plus a few global tokens that attend to all tokens and are attended to by all."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask, Mask, from_tensor, global_tokens, sliding_window
from attnlab.nn.attention import Card, UnsupportedError, check_positive_int, make_linear, renamed_options
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.bias import cut
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions


class LongformerAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over a window and the global keys; global queries have own projections.

    Source: Beltagy et al. 2020, "Longformer: The Long-Document Transformer", section 3.1.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        window_size: w, the number of keys on each side of a token, itself included (the paper's window is 2w - 1).
        num_global: g, the number of global tokens, which are the first of the sequence.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Longformer attention",
        summary="a sliding window, plus global tokens that attend to all tokens and are attended to by all",
        paper="Longformer: The Long-Document Transformer",
        authors="Beltagy et al.",
        year=2020,
        arxiv="2004.05150",
        kind="exact",
        heads="h",
        time="n·(w + g)·d + n·d²",
        memory="n·d",
        representation="h sparse softmax attention matrices: a band, g rows and g columns",
        use_case="long documents with a token that represents all: classification, question answering",
        supports=("causal", "arbitrary_mask", "attn_bias", "weights"),
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        self.window_size = check_positive_int("window_size", window_size)
        self.num_global = check_positive_int("num_global", num_global)
        self.qkv_global = make_linear(embed_dim, 3 * embed_dim, bias=bias, **factory)
        self.qkv_global.load_state_dict(self.qkv.state_dict())  # both start equal, as in the paper

    def reset_parameters(self) -> None:
        """Initialize the projections again; both sets start equal."""
        super().reset_parameters()
        self.qkv_global.load_state_dict(self.qkv.state_dict())

    def attention_pattern(self, length: int) -> Mask:
        """The window, plus the rows and columns of the global tokens."""
        return sliding_window(self.window_size) | global_tokens(self.num_global)

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        local_map, global_map, V, V_g = self._local_and_global(x, mask, attn_bias)
        dropout = self.dropout if self.training else 0.0
        first, heads = global_map.apply(V_g, dropout=dropout), local_map.apply(V, dropout=dropout)
        return self._merge_heads(heads.slice_scatter(first, 2, 0, first.shape[2]), x)

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> AttentionMap:
        local_map, global_map, _, _ = self._local_and_global(x, mask, attn_bias)
        return FirstRows(global_map, local_map)

    def _apply_weights(
        self, weights: Float[Tensor, "B H N N"], x: Float[Tensor, "B N D"], context: Tensor | None = None
    ) -> Float[Tensor, "B N D"]:
        (_, _, V), (_, _, V_g), g = self._project_qkv(x, None), self._project_global(x), self.num_global
        return self._merge_heads(torch.cat([weights[:, :, :g] @ V_g, weights[:, :, g:] @ V], 2), x)

    def _values(self, x: Float[Tensor, "B N D"], context: Tensor | None = None) -> Float[Tensor, "B H N d"]:
        raise UnsupportedError("Longformer has two sets of values: global queries average others than the rest")

    def _local_and_global(
        self, x: Tensor, mask: BoundMask | None, attn_bias: Tensor | None
    ) -> tuple[SoftmaxMap, SoftmaxMap, Tensor, Tensor]:
        """The attention of all queries with ``qkv`` and of the global queries with ``qkv_global``, and both values."""
        assert mask is not None  # it holds the pattern
        Q, K, V = self._project_qkv(x, None)
        Q, K, added = self._apply_positions(Q, K, attn_bias, None)
        Q_g, K_g, V_g = self._project_global(x)  # g queries, and keys and values of all
        Q_g, K_g = self.positions.apply_rotary(Q_g), self.positions.apply_rotary(K_g)
        rows, columns = slice(0, Q_g.shape[2]), slice(0, K_g.shape[2])
        global_mask = from_tensor(mask.tile(rows, columns)).bind(rows.stop, columns.stop, offset=0, device=x.device)
        global_map = SoftmaxMap(Q_g, K_g, global_mask, None if added is None else cut(added, rows, columns))
        return SoftmaxMap(Q, K, mask, added), global_map, V, V_g

    def _project_global(self, x: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        # Called on all tokens and sliced afterwards, so that adapters and hooks of the module apply.
        Q, K, V = self.qkv_global(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).chunk(3, 1)
        return Q[:, :, : self.num_global], K, V

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        D = self.qkv_sizes[0]
        channels = head_channels(heads, self.head_dim)
        select_features(self.qkv_global, rows=[part * D + i for part in range(3) for i in channels])
        super()._select_heads(heads, groups)


class FirstRows(AttentionMap):
    """An attention map whose first rows are those of another one."""

    def __init__(self, first: AttentionMap, rest: AttentionMap) -> None:
        super().__init__(rest.shape, rest._like)
        self._first, self._rest = first, rest

    @property
    def changes(self) -> frozenset[str]:
        """Those that both maps support."""
        return self._first.changes & self._rest.changes

    def _with_scores(self, options: ScoreOptions) -> FirstRows:
        return FirstRows(self._first._with_scores(options), self._rest._with_scores(options))

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        (self._first if cell.query < self._first.shape[2] else self._rest)._explain(a, cell)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """The output for these values."""
        first = self._first.apply(values, dropout=dropout)
        return self._rest.apply(values, dropout=dropout).slice_scatter(first, 2, 0, first.shape[2])

    def _rows(self, rows: Tensor) -> Tensor:
        count = self._first.shape[2]
        first = self._first._rows(rows.clamp(max=count - 1))
        return torch.where((rows < count)[:, None], first, self._rest._rows(rows))
