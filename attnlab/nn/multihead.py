"""Attention in heads, out of parts: the steps that such mechanisms share, and the parts that they exchange.

A mechanism with heads subclasses `MultiHeadBase` and writes `_attention_map`, the step that makes it what it is. One
that differs elsewhere overrides that step (`_project_qkv`, `_apply_positions`, `_merge_heads`):

- keys and values shared by several heads: ``num_kv_heads`` (Shazeer 2019; Ainslie et al. 2023);
- `QKNorm`, queries and keys of one length (in `_project_qkv`);
- a cap on the scores and a sink, ``SoftmaxMap(..., softcap=50.0, sink=self.sink)`` (in `_attention_map`);
- `OutputGate`, which lets through what a token wants of its heads (in `_merge_heads`).

One with a part that has something for each head (a sink, a gate) says in `_select_heads` what fewer heads leave of it.

Axes: B batch, H heads, G of them to a head of keys, N queries, M keys, D embed_dim, d head_dim.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, UnsupportedError, check_positive_int, divisors_near, join_or, make_linear
from attnlab.nn.cache import KVCache
from attnlab.nn.select import head_channels, select_features, validate_indices
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.bias import Bias
from attnlab.positions import Positions, parse_positions
from attnlab.utils.tracing import autocast_dtype


class MultiHeadBase(Attention):
    """``concat(head_1, ..., head_H) W_O``: query, key, value, map and output, a step each.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: H, the heads of queries.
        num_kv_heads: H / G, the heads of keys and values; as many as of queries where not given.
        head_dim: d, the width of a head; ``embed_dim / num_heads`` where not given.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters (see `attnlab.positions`).
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: for ``num_kv_heads`` that do not divide ``num_heads``, and what `Attention` refuses.
    """

    supports_packing = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, head_dim=head_dim, causal=causal, dropout=dropout)
        self.num_kv_heads = num_heads if num_kv_heads is None else check_positive_int("num_kv_heads", num_kv_heads)
        if num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({num_kv_heads}) must divide num_heads ({num_heads}); "
                f"try num_kv_heads={join_or(divisors_near(num_heads, self.num_kv_heads))}"
            )
        # W_Q, W_K and W_V of all heads in one product
        self.qkv = make_linear(embed_dim, sum(self.qkv_sizes), bias=bias, device=device, dtype=dtype)
        self.output = make_linear(num_heads * self.head_dim, embed_dim, bias=bias, device=device, dtype=dtype)  # W_O
        self.positions = parse_positions(
            positions, num_heads=num_heads, head_dim=self.head_dim, causal=causal, device=device, dtype=dtype
        )
        if self.positions.name != "none":
            self._drop_equivariance()

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """How much of ``qkv`` makes queries, keys and values."""
        shared = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, shared, shared

    # The steps, in their order

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, context)
        Q, K, added = self._apply_positions(Q, K, attn_bias, context, cache)
        if cache is not None:
            K, V = cache.update(K, V)  # with all that was seen before
        heads = self._attention_map(Q, K, mask, added).apply(V, dropout=self.dropout if self.training else 0.0)
        return self._merge_heads(heads, x)

    def _project_qkv(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"] | None
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H_kv M d"], Float[Tensor, "B H_kv M d"]]:
        """Queries, keys and values: views into one product, without a copy.

        With a context ``qkv`` is called on both sequences, and a part of each product is not used: cut out of its
        weights, it would be right only as long as nothing was added to it (an adapter, a hook, quantization).
        """
        H, shared = self.num_heads, self.num_kv_heads
        Q, K, V = self._heads(self.qkv(x)).split([H, shared, shared], 1)
        if context is not None:
            _, K, V = self._heads(self.qkv(context)).split([H, shared, shared], 1)
        return Q, K, V

    def _heads(self, product: Float[Tensor, "B N W"]) -> Float[Tensor, "B H N d"]:
        return product.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _apply_positions(
        self, Q: Tensor, K: Tensor, bias: Tensor | None, context: Tensor | None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor, Bias | None]:
        """Q and K turned by their places, and the bias of distance added to ``bias``."""
        if self.positions.name == "none":
            return Q, K, bias
        first, kept = (0, 0) if cache is None else (cache.num_seen, cache.num_cached)
        Q, K = self.positions.apply_rotary(Q, first), self.positions.apply_rotary(K, first)
        own = self.positions.attention_bias(Q.shape[2], kept + K.shape[2], Q.device)
        if own is None:
            return Q, K, bias
        own = own.to(Q.dtype)  # a bias may be of a lower precision
        # Called by name: torch.compile breaks the graph at an operator between an object and a tensor.
        return Q, K, own if bias is None else own.__add__(bias)

    def _attention_map(self, Q: Tensor, K: Tensor, mask: BoundMask | None, bias: Bias | None) -> AttentionMap:
        """Who looks at whom, a map a head, (B, H, N, M): what makes the mechanism."""
        raise NotImplementedError(f"{type(self).__name__} has no _attention_map")

    def _merge_heads(self, heads: Float[Tensor, "B H N d"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The heads side by side, mixed by W_O."""
        return self.output(self._concat(heads))

    # Fewer heads

    def keep_heads(self, heads: Iterable[int]) -> Self:
        """A copy with these heads alone, whose output is this layer's without what the other heads add to it.

        Args:
            heads: which stay, counted from 0, in any order. A mask or a bias of an axis of heads must then have theirs.

        Raises:
            TypeError: for a number that is not whole, or a projection that is no plain `nn.Linear`.
            ValueError: for a head that is not there or named twice, for none, or for heads of keys that would be read
                by unequal numbers of heads.
            UnsupportedError: for a mechanism with parts that it does not say how to narrow.
        """
        kept = validate_indices(heads, self.num_heads)
        if not kept:
            raise ValueError("at least one head must stay; to be rid of all, leave the layer out")
        readers = self.num_heads // self.num_kv_heads
        left = Counter(head // readers for head in kept)
        if len(set(left.values())) > 1:
            raise ValueError(
                f"heads {', '.join(map(str, kept))} cannot stay alone: each head of keys is read by {readers} "
                f"({', '.join(f'{g * readers} to {g * readers + readers - 1}' for g in range(self.num_kv_heads))}); "
                f"keep as many of each group, or leave out whole groups"
            )
        self._check_parts()
        layer = copy.deepcopy(self)
        with torch.no_grad():
            layer._select_heads(kept, sorted(left))
        return layer

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        """Leave these heads of queries and these of keys, in place. One with more parts a head extends it."""
        first_key, first_value = self.qkv_sizes[0], sum(self.qkv_sizes[:2])
        own, shared = head_channels(heads, self.head_dim), head_channels(groups, self.head_dim)
        select_features(self.qkv, rows=[*own, *(first_key + i for i in shared), *(first_value + i for i in shared)])
        select_features(self.output, columns=own)
        self.positions.keep_heads(heads)
        self.num_heads, self.num_kv_heads = len(heads), len(groups)

    def _check_parts(self) -> None:
        parts = {name.split(".")[0] for name, _ in (*self.named_parameters(), *self.named_buffers())}
        own = {name for name in parts if not isinstance(getattr(self, name), QKNorm)}  # one for all heads
        if (own := own - {"qkv", "output", "positions"}) and type(self)._select_heads is MultiHeadBase._select_heads:
            raise UnsupportedError(
                f"{type(self).__name__} does not say what is left of {', '.join(sorted(own))} with fewer heads; "
                "extend _select_heads for it"
            )
        for name in ("qkv", "output"):
            if type(part := getattr(self, name)) is not nn.Linear:
                raise TypeError(
                    f"heads are cut out of an nn.Linear, and {name} is a {type(part).__name__}; "
                    "merge what was added to it first"
                )

    # The map, and what it gives

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> AttentionMap:
        Q, K, _ = self._project_qkv(x, context)
        Q, K, added = self._apply_positions(Q, K, attn_bias, context)
        return self._attention_map(Q, K, mask, added)

    def _apply_weights(
        self,
        weights: Float[Tensor, "B H N M"],
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        _, _, V = self._project_qkv(x, context)
        return self._merge_heads(weights @ V.repeat_interleave(self.num_heads // self.num_kv_heads, 1), x)

    @staticmethod
    def _concat(heads: Float[Tensor, "B H N d"]) -> Float[Tensor, "B N H*d"]:
        return heads.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """What a printed network shows of this layer."""
        shared = "" if self.num_kv_heads == self.num_heads else f", num_kv_heads={self.num_kv_heads}"
        wide = "" if self.head_dim * self.num_heads == self.embed_dim else f", head_dim={self.head_dim}"
        return f"{super().extra_repr()}{shared}{wide}"


class QKNorm(nn.Module):
    """Queries and keys of one length: a score can then grow with the learned gains alone.

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", arXiv:2010.04245; by the root of the mean
    square, as in Qwen3 (2025).

    Args:
        head_dim: d.
        eps: keeps a vector of zeros finite.
        device: where the gains are made.
        dtype: of the gains.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.query = nn.RMSNorm(head_dim, eps=eps, device=device, dtype=dtype)
        self.key = nn.RMSNorm(head_dim, eps=eps, device=device, dtype=dtype)

    def forward(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H_kv M d"]
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H_kv M d"]]:
        """Each vector over its root mean square, times the gains."""
        return rms_norm(Q, self.query), rms_norm(K, self.key)


def rms_norm(x: Float[Tensor, "*rest d"], norm: nn.Module) -> Float[Tensor, "*rest d"]:
    """``norm(x)`` in the dtype of ``x``; under autocast computed in float32, the dtype of the norm's gains there."""
    if autocast_dtype(x.device) is not None:
        return norm(x.float()).to(x.dtype)
    return norm(x)


class OutputGate(nn.Module):
    """``heads · sigmoid(x W_G)``: each token decides what of its heads' answers goes on.

    Source: Qiu et al. 2025, "Gated Attention for Large Language Models", arXiv:2505.06708, section 2 (the gate after
    the attention, by element or by head).

    Args:
        embed_dim: D.
        num_heads: H.
        width: the gates of a head, d (one for each of its numbers) or 1 (one for all of them).
        bias: whether the gate's projection adds a bias.
        device: where the projection is made.
        dtype: of the projection.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        width: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.projection = make_linear(embed_dim, num_heads * width, bias=bias, device=device, dtype=dtype)

    def forward(self, heads: Float[Tensor, "B H N d"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        """What is let through."""
        gates = torch.sigmoid(self.projection(x)).unflatten(-1, (-1, self.width))
        return heads * gates.transpose(1, 2)

    def keep_heads(self, heads: list[int]) -> None:
        """Leave what is let through of these heads, in place."""
        select_features(self.projection, rows=head_channels(heads, self.width))


def as_multihead(layer: nn.Module) -> MultiHeadBase:
    """``layer``, where its heads can be told apart.

    Raises:
        UnsupportedError: for any other.
    """
    if not isinstance(layer, MultiHeadBase):
        raise UnsupportedError(
            f"{type(layer).__name__} has no heads that can be told apart; an attnlab.nn.multihead.MultiHeadBase has"
        )
    return layer
