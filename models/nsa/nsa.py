"""Native sparse attention: attention to compressed blocks, to the blocks they select, and to a window, with gates."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, causal, sliding_window
from attnlab.masks.bound import Index, positions
from attnlab.nn.attention import Attention, Card, check_positive_int, divisors_near, join_or, make_linear
from attnlab.nn.cache import KVCache
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.backends.eager import masked_softmax
from attnlab.ops.call import repeat_kv
from attnlab.ops.rowwise import RowwiseMap, scaled_dot_product
from attnlab.ops.selection import SelectedMap, top_k
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions, parse_positions

LOCAL_BLOCKS = 2
"""The last blocks of a query, which are always selected, as is the first block of the sequence."""


class NativeSparseAttention(Attention):
    """``head = g_cmp · Attn(q, K_cmp, V_cmp) + g_slc · Attn(q, K_slc, V_slc) + g_win · Attn(q, K_win, V_win)``.

    K_cmp holds one key per block of tokens, a learned weighted sum of its keys (and V_cmp of its values); K_slc the
    keys of the c blocks with the largest attention weights over K_cmp, summed over the heads that share keys; K_win the
    last w keys. The gates g are sigmoids of x W_g. Blocks are counted from the first position, and a query attends to a
    compressed block if it may attend to all of its tokens.

    Source: Yuan et al. 2025, "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
    sections 3.2 and 3.3, and section 4.1 for the blocks that are always selected: the first and the last two. The paper
    compresses with an MLP and gives each branch keys and values of its own; here the compression is linear and the
    branches share keys and values, so that the output is linear in the values.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of query heads; it must divide embed_dim.
        num_kv_heads: the number of key and value heads; it must divide num_heads. The query heads of a group share
            the selected blocks.
        compress_block: l, the number of tokens of a compressed block.
        compress_stride: s, the distance between compressed blocks; it must divide compress_block and select_block.
        select_block: b, the number of tokens of a block that is selected.
        num_selected: c, the number of selected blocks, at least 3.
        window_size: w, the number of keys of the window, with the token itself.
        causal: must be True; the mechanism has no other form.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding of queries and keys of the selected blocks and the window: none or rotary,
            optionally with settings, such as "rotary(base=500000)". Compressed keys have none (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a size below 1, one that does not divide another, fewer than 3 selected blocks, and other
            positions.
    """

    card = Card(
        title="Native sparse attention",
        summary="compressed blocks, the blocks that they select and a sliding window, combined by gates",
        paper="Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
        authors="Yuan et al.",
        year=2025,
        arxiv="2502.11089",
        kind="another operator",
        heads="h query heads, grouped",
        time="n²/s·d + n·(c·b + w)·d + n·d²",
        memory="n·d",
        representation="h gated sums of an attention matrix over blocks, one over selected blocks and a banded one",
        use_case="causal language models with long contexts",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="groupedquery",
        weights="signed",
        always_causal=True,
    )

    is_relative = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_kv_heads: int | None = None,
        compress_block: int = 16,
        compress_stride: int = 8,
        select_block: int = 16,
        num_selected: int = 4,
        window_size: int = 32,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout)
        groups = num_heads if num_kv_heads is None else check_positive_int("num_kv_heads", num_kv_heads)
        if num_heads % groups:
            near = join_or(divisors_near(num_heads, groups))
            raise ValueError(f"num_kv_heads ({groups}) must divide num_heads ({num_heads}); try num_kv_heads={near}")
        self.num_kv_heads = groups
        self.compress_block = check_positive_int("compress_block", compress_block)
        self.compress_stride = check_positive_int("compress_stride", compress_stride)
        self.select_block = check_positive_int("select_block", select_block)
        for name, size in {"compress_block": compress_block, "select_block": select_block}.items():
            if size % compress_stride:
                near = join_or(divisors_near(size, compress_stride))
                raise ValueError(
                    f"compress_stride ({compress_stride}) must divide {name} ({size}); try compress_stride={near}"
                )
        self.num_selected = check_positive_int("num_selected", num_selected)
        if num_selected < 1 + LOCAL_BLOCKS:
            raise ValueError(
                f"num_selected must be at least 3, because the first and the last two blocks are always selected, "
                f"not {num_selected}"
            )
        self.window_size = check_positive_int("window_size", window_size)
        self.positions = parse_positions(positions, num_heads=num_heads, head_dim=self.head_dim, causal=causal)
        if self.positions.name not in ("none", "rotary"):
            raise ValueError(f"positions of native sparse attention are none or rotary, not {self.positions.name}")
        self.qkv = make_linear(embed_dim, (num_heads + 2 * groups) * self.head_dim, bias=bias, **factory)
        self.gate = make_linear(embed_dim, 3 * num_heads, bias=bias, **factory)  # W_g
        self.output = make_linear(embed_dim, embed_dim, bias=bias, **factory)  # W_O
        self.key_pool = nn.Parameter(torch.empty(groups, compress_block, **factory))
        self.value_pool = nn.Parameter(torch.empty(groups, compress_block, **factory))
        self._reset_pools()

    def reset_parameters(self) -> None:
        """Initialize the projections at random, and the compression as a mean."""
        super().reset_parameters()
        self._reset_pools()

    def _reset_pools(self) -> None:
        for pool in (self.key_pool, self.value_pool):
            nn.init.constant_(pool, 1 / self.compress_block)

    def is_continuous(self, length: int) -> bool:
        """Whether all blocks are selected in a sequence of this length."""
        return length <= self.num_selected * self.select_block

    def _forward(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, cache: KVCache | None = None
    ) -> Float[Tensor, "B N D"]:
        attention, V = self._map_and_values(x, mask, cache)
        return self._merge_heads(attention.apply(V, dropout=self.dropout if self.training else 0.0))

    def _build_map(self, x: Float[Tensor, "B N D"], mask: BoundMask | None) -> ThreeBranches:
        return self._map_and_values(x, mask)[0]

    def _apply_weights(self, weights: Float[Tensor, "B H N N"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self._merge_heads(weights @ self._values(x))

    def _values(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return repeat_kv(self._project_qkv(x)[2], self.num_heads // self.num_kv_heads)

    def _merge_heads(self, heads: Float[Tensor, "B H N d"]) -> Float[Tensor, "B N D"]:
        return self.output(heads.transpose(1, 2).flatten(2))

    def _project_qkv(self, x: Float[Tensor, "B N D"]) -> list[Tensor]:
        H, H_kv = self.num_heads, self.num_kv_heads
        parts = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split_with_sizes([H, H_kv, H_kv], 2)
        return [part.transpose(1, 2) for part in parts]

    def _map_and_values(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, cache: KVCache | None = None
    ) -> tuple[ThreeBranches, Tensor]:
        Q, K, V = self._project_qkv(x)
        rotated_Q, rotated_K = Q, K
        if self.positions.name != "none":
            first = 0 if cache is None else cache.num_seen
            rotated_Q, rotated_K = (self.positions.apply_rotary(t, first) for t in (Q, K))
        if cache is not None and rotated_K is not K:
            K, rotated_K, V = cache.update(K, rotated_K, V)
        elif cache is not None:
            K, V = cache.update(K, V)
            rotated_K = K
        (N, M), shape = (Q.shape[2], K.shape[2]), (x.shape[0], self.num_heads)
        if mask is None:  # the last token, which attends to all
            mask = causal().bind(N, M, shape=shape, device=x.device)
        window = BoundMask(mask.mask & sliding_window(self.window_size), N, M, M - N, shape, x.device)
        blocks = Blocks(self, Q, self._compress(K, self.key_pool), mask)
        selected = SelectedMap(rotated_Q, rotated_K, mask, blocks.select, self.num_selected * self.select_block)
        gates = torch.sigmoid(self.gate(x)).unflatten(-1, (3, self.num_heads)).permute(2, 0, 3, 1).unsqueeze(-1)
        branches = [blocks.attention(), selected, SoftmaxMap(rotated_Q, rotated_K, window)]
        return ThreeBranches(self, branches, gates), V

    def _compress(self, t: Float[Tensor, "B H M d"], pool: Float[Tensor, "G l"]) -> Float[Tensor, "B G m d"]:
        """Return the weighted sum of each block of l tokens, every s tokens; blocks that reach beyond the end too.

        G heads; H is G or 1.
        """
        blocks = split(t.mT, self.compress_block, self.compress_stride)  # (B, H_kv, d, m, l)
        return (blocks @ pool.to(t.dtype)[:, None, :, None]).squeeze(-1).mT

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return (
            f"{super().extra_repr()}, num_kv_heads={self.num_kv_heads}, compress_block={self.compress_block}, "
            f"compress_stride={self.compress_stride}, select_block={self.select_block}, "
            f"num_selected={self.num_selected}, window_size={self.window_size}"
        )


class Blocks:
    """The attention to compressed blocks, and the selection of blocks by its weights.

    Args:
        layer: the sizes of the blocks.
        Q: (B, H, N, d).
        keys: (B, H_kv, m, d), the compressed keys.
        mask: the tokens that each query may attend to.
    """

    def __init__(self, layer: NativeSparseAttention, Q: Tensor, keys: Tensor, mask: BoundMask) -> None:
        self.l, self.s, self.b, self.c = (
            layer.compress_block,
            layer.compress_stride,
            layer.select_block,
            layer.num_selected,
        )
        self.Q, self.mask, self.groups = Q, mask, layer.num_heads // layer.num_kv_heads
        self.keys = repeat_kv(keys, self.groups)

    def attention(self) -> AttentionMap:
        """The attention weights over the compressed blocks, (B, H, N, m)."""

        def added(rows: Index, blocks: Index, _: Tensor | None) -> Tensor:
            visible = self._visible(rows)[..., blocks]
            return torch.zeros_like(visible, dtype=self.Q.dtype).masked_fill(~visible, -torch.inf)

        return RowwiseMap(self.Q, self.keys, None, None, masked_softmax, added=added)

    def select(self, rows: Index, keys: Index, permitted: Tensor | None) -> Tensor:
        """The tokens of the selected blocks, Boolean (B, H_kv, n, keys)."""
        assert isinstance(keys, slice)  # from the first token on
        assert permitted is not None
        m, device = keys.stop, self.Q.device
        weights = masked_softmax(
            scaled_dot_product(self.Q[:, :, rows].detach(), self.keys.detach()), self._visible(rows)
        )
        importance = weights.unflatten(1, (-1, self.groups)).sum(2)  # equation 10
        start = self.s * torch.arange(self.keys.shape[2], device=device)[:, None]
        some = split(permitted, self.b, self.b).any(-1)
        first = self.b * torch.arange(some.shape[-1], device=device)
        # The tokens that compressed and selected blocks have in common, in strides (equation 9).
        common = torch.minimum(start + self.l, first + self.b) - torch.maximum(start, first)
        importance = importance @ (common.clamp(min=0) / self.s).to(importance.dtype)
        own = positions(rows, self.mask.offset, device)[:, None] // self.b  # the block of each query
        block = torch.arange(first.shape[0], device=device)
        always = (block == 0) | ((block <= own) & (block > own - LOCAL_BLOCKS))
        importance = importance.masked_fill(always, torch.inf)
        chosen = top_k(importance, self.c, some)
        return chosen.index_select(-1, torch.arange(m, device=device) // self.b) & permitted

    def _visible(self, rows: Index) -> Tensor:
        """Which compressed blocks hold only tokens that the queries may attend to, (B or 1, 1, n, m)."""
        if self.mask.mask.is_causal_only:
            last = torch.arange(self.keys.shape[2], device=self.Q.device) * self.s + self.l - 1
            return (last <= positions(rows, self.mask.offset, self.Q.device)[:, None])[None, None]
        tokens = self.mask.tile(rows, slice(0, self.mask.keys))
        return split(tokens, self.l, self.s).all(-1)


def split(t: Float[Tensor, "*rest M"], size: int, step: int) -> Float[Tensor, "*rest m size"]:
    """Return the blocks of ``size`` that start every ``step``, padded with zeros at the end; m = ⌊M / step⌋ + 2.

    The last blocks hold zeros. There are at least two blocks, because PyTorch specializes a traced length of one.
    """
    count, t = t.shape[-1] // step + 2, F.pad(t, (0, size + step))
    if not torch.compiler.is_compiling():
        return t.unfold(-1, size, step)
    return t[..., step * torch.arange(count, device=t.device)[:, None] + torch.arange(size, device=t.device)]


class ThreeBranches(AttentionMap):
    """The gated sum of the three branches, as a matrix over tokens.

    Args:
        layer: compresses the values.
        branches: the attention to compressed blocks, to selected tokens and to the window.
        gates: (3, B, H, N, 1).
    """

    def __init__(self, layer: NativeSparseAttention, branches: list[AttentionMap], gates: Tensor) -> None:
        super().__init__(branches[1].shape, gates)
        self._layer, self._branches, self._gates = layer, branches, gates

    @property
    def changes(self) -> frozenset[str]:
        """Those that all branches support; the blocks stay selected by the scores of the mechanism."""
        return frozenset.intersection(*(branch.changes for branch in self._branches))

    def _with_scores(self, options: ScoreOptions) -> ThreeBranches:
        branches = [branch._with_scores(options) for branch in self._branches]
        return ThreeBranches(self._layer, branches, self._gates)

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        (b, h, i, j), layer = cell, self._layer
        gates = a.given("gates", self._gates[:, b, h, i, 0], "the gates of the branches: compressed, selected, window")
        size, step = layer.compress_block, layer.compress_stride
        blocks = range(max(0, -(-(j - size + 1) // step)), j // step + 1)
        places = [j - block * step for block in blocks]
        weights = self._branches[0].materialize([i], [h])[b, 0, 0, blocks.start : blocks.stop]
        pool = layer.value_pool[h // (layer.num_heads // layer.num_kv_heads), places]
        weight = a.given("blocks", weights, "the attention weights of the compressed blocks that contain the key")
        share = a.given("shares", pool, "the factors of the key in the compressed values of these blocks")
        terms = [a.compute("compressed", f"sum(x * y for x, y in zip({weight}, {share}))", "the compressed branch")]
        for branch, suffix in zip(self._branches[1:], ("_selected", "_window"), strict=True):
            part = a.part(suffix)
            branch._explain(part, cell)
            terms.append(part.last)
        code = " + ".join(f"{gates}[{n}] * {term}" for n, term in enumerate(terms))
        a.compute("weight", code, "the gated sum of the three branches")

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, 1, H_kv or H, M, w)."""
        layer, pool = self._layer, self._layer.value_pool
        if values.shape[1] == layer.num_kv_heads:
            compressed = repeat_kv(layer._compress(values, pool), layer.num_heads // layer.num_kv_heads)
        else:
            compressed = layer._compress(values, repeat_kv(pool[None], layer.num_heads // layer.num_kv_heads)[0])
        outs = [
            branch.apply(v, dropout=dropout)
            for branch, v in zip(self._branches, (compressed, values, values), strict=True)
        ]
        total: Tensor = sum(gate * out for gate, out in zip(self._gates, outs, strict=True))
        return total
