"""Multi-head attention: the steps that all such mechanisms share, and the parts that some of them add.

A mechanism subclasses `MultiHeadBase` and overrides the step in which it differs: `_project_qkv`, `_apply_positions`,
`_attention_map` (softmax by default) or `_merge_heads`. For example:

- keys and values that several heads share: ``num_kv_heads`` (Shazeer 2019; Ainslie et al. 2023);
- normalized queries and keys: `QKNorm`, in `_project_qkv`;
- a cap on the scores and a sink: ``SoftmaxMap(..., softcap=50.0, sink=self.sink)``, in `_attention_map`;
- a gate on the heads: `OutputGate`, in `_merge_heads`.

A mechanism with parameters per head (a sink, a gate) selects them in `_select_heads`.

Axes: B batch, H heads, G query heads per key head, N queries, M keys, D embed_dim, d head_dim.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, UnsupportedError, check_positive_int, divisors_near, join_or, make_linear
from attnlab.nn.cache import KVCache
from attnlab.nn.select import head_channels, select_channels, select_features, validate_indices
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.bias import Bias
from attnlab.ops.call import repeat_kv
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions, parse_positions
from attnlab.utils.tracing import autocast_dtype


class MultiHeadBase(Attention):
    """``concat(head_1, ..., head_H) W_O``, in steps that a subclass can override.

    Args:
        embed_dim: D, the width of a token, in and out.
        num_heads: H, the number of query heads.
        num_kv_heads: H / G, the number of key and value heads; ``num_heads`` by default.
        head_dim: d, the width of a head; ``embed_dim / num_heads`` by default.
        causal: a token attends only to itself and to earlier tokens.
        dropout: the dropout probability of the attention weights, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding (see `attnlab.positions`).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for ``num_kv_heads`` that do not divide ``num_heads``, and what `Attention` refuses.
    """

    supports_packing = True

    fuses_qkv: ClassVar[bool] = True
    """Whether queries, keys and values are one product, ``qkv``, of the same tokens; otherwise there is no ``qkv``."""

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
        if self.fuses_qkv:  # W_Q, W_K and W_V of all heads in one product
            self.qkv = make_linear(embed_dim, sum(self.qkv_sizes), bias=bias, device=device, dtype=dtype)
        self.output = make_linear(self.merged_size, embed_dim, bias=bias, device=device, dtype=dtype)  # W_O
        self.positions = parse_positions(
            positions, num_heads=num_heads, head_dim=self.head_dim, causal=causal, device=device, dtype=dtype
        )
        if self.positions.name != "none":
            self._drop_equivariance()

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """The features of ``qkv`` for queries, keys and values."""
        shared = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, shared, shared

    @property
    def merged_size(self) -> int:
        """The features of the concatenated heads."""
        return self.num_heads * self.head_dim

    # The steps, in order

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, context)
        Q, K, bias = self._apply_positions(Q, K, attn_bias, context, cache)
        if cache is not None:
            K, V = cache.update(K, V)  # the keys and values of all tokens so far
        heads = self._attention_map(Q, K, mask, bias).apply(V, dropout=self.dropout if self.training else 0.0)
        return self._merge_heads(heads, x)

    def _project_qkv(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"] | None
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H_kv M d"], Float[Tensor, "B H_kv M d"]]:
        """Return queries, keys and values, as views of one product.

        With a context, ``qkv`` is called on both sequences and a part of each product is unused: slices of its weight
        would miss adapters, hooks and quantization.
        """
        H, H_kv = self.num_heads, self.num_kv_heads
        # Split before the axes are swapped: the gradients are then concatenated in the layout of the product.
        Q, K, V = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split_with_sizes([H, H_kv, H_kv], 2)
        if context is not None:
            _, K, V = self.qkv(context).unflatten(-1, (-1, self.head_dim)).split([H, H_kv, H_kv], 2)
        return Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)

    def _apply_positions(
        self, Q: Tensor, K: Tensor, bias: Tensor | None, context: Tensor | None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor, Bias | None]:
        """Return rotated queries and keys, and ``bias`` plus the bias of the positions."""
        if self.positions.name == "none":
            return Q, K, bias
        first, cached = (0, 0) if cache is None else (cache.num_seen, cache.num_cached)
        Q, K = self.positions.apply_rotary(Q, first), self.positions.apply_rotary(K, first)
        relative = self.positions.attention_bias(Q.shape[2], cached + K.shape[2], Q.device)
        if relative is None:
            return Q, K, bias
        relative = relative.to(Q.dtype)  # ``bias`` may have a lower precision
        # Called by name, because torch.compile breaks the graph at an operator between an object and a tensor.
        return Q, K, relative if bias is None else relative.__add__(bias)

    def _attention_map(self, Q: Tensor, K: Tensor, mask: BoundMask | None, bias: Bias | None) -> AttentionMap:
        """Return the attention weights, one matrix per head, lazily: softmax(Q Kᵀ / √d) over the allowed keys."""
        return SoftmaxMap(Q, K, mask, bias)

    def _merge_heads(self, heads: Float[Tensor, "B H N d"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the concatenated heads times W_O."""
        return self.output(heads.transpose(1, 2).flatten(2))

    # Fewer heads

    def keep_heads(self, heads: Iterable[int]) -> Self:
        """Return a copy with these heads only; its output lacks the contributions of the other heads.

        Args:
            heads: the indices of the heads to keep; they stay in the order of the layer, whatever the order given here.
                A mask or a bias per head must then have as many.

        Raises:
            TypeError: for an index that is not an integer, or a projection that is not a plain `nn.Linear`.
            ValueError: for an index out of range or repeated, no heads, or groups of shared keys of unequal size.
            UnsupportedError: for a mechanism with further parameters per head that does not override `_select_heads`.
        """
        kept = validate_indices(heads, self.num_heads)
        if not kept:
            raise ValueError("at least one head must be kept; to remove all heads, leave out the layer")
        size = self.num_heads // self.num_kv_heads
        groups = Counter(head // size for head in kept)
        if len(set(groups.values())) > 1:
            raise ValueError(
                f"heads {', '.join(map(str, kept))} cannot be kept alone: {size} heads share each key head "
                f"({', '.join(f'{g * size} to {g * size + size - 1}' for g in range(self.num_kv_heads))}); "
                f"keep the same number of each group, or leave out whole groups"
            )
        self._check_parts()
        layer = copy.deepcopy(self)
        with torch.no_grad():
            layer._select_heads(kept, sorted(groups))
        return layer

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        """Keep these query heads and these key heads, in place; a subclass with parameters per head extends it."""
        first_key, first_value = self.qkv_sizes[0], sum(self.qkv_sizes[:2])
        q, kv = head_channels(heads, self.head_dim), head_channels(groups, self.head_dim)
        select_features(self.qkv, rows=[*q, *(first_key + i for i in kv), *(first_value + i for i in kv)])
        select_features(self.output, columns=q)
        self.positions.keep_heads(heads)
        self.num_heads, self.num_kv_heads = len(heads), len(groups)

    def _check_parts(self) -> None:
        parts = {name.split(".")[0] for name, _ in (*self.named_parameters(), *self.named_buffers())}
        parts = {name for name in parts if not isinstance(getattr(self, name), QKNorm)}  # shared by all heads
        if (parts := parts - {"qkv", "output", "positions"}) and (
            type(self)._select_heads is MultiHeadBase._select_heads
        ):
            raise UnsupportedError(
                f"{type(self).__name__} does not select the heads of {', '.join(sorted(parts))}; extend _select_heads"
            )
        for name in ("qkv", "output") if self.fuses_qkv else ("output",):
            if type(part := getattr(self, name)) is not nn.Linear:
                raise TypeError(
                    f"heads can be selected in an nn.Linear, but {name} is a {type(part).__name__}; "
                    "merge adapters first"
                )

    # The attention weights

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> AttentionMap:
        Q, K, _ = self._project_qkv(x, context)
        Q, K, bias = self._apply_positions(Q, K, attn_bias, context)
        return self._attention_map(Q, K, mask, bias)

    def _apply_weights(
        self,
        weights: Float[Tensor, "B H N M"],
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        return self._merge_heads(weights @ self._values(x, context), x)

    def _values(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"] | None = None
    ) -> Float[Tensor, "B H M d"]:
        return repeat_kv(self._project_qkv(x, context)[2], self.num_heads // self.num_kv_heads)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        shared = "" if self.num_kv_heads == self.num_heads else f", num_kv_heads={self.num_kv_heads}"
        wide = "" if self.head_dim * self.num_heads == self.embed_dim else f", head_dim={self.head_dim}"
        return f"{super().extra_repr()}{shared}{wide}"


class QKNorm(nn.Module):
    """RMS normalization of queries and keys: the scores then grow only with the learned gains.

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers", arXiv:2010.04245; with RMSNorm as in Qwen3
    (2025).

    Args:
        head_dim: d.
        eps: keeps a zero vector finite.
        device: the device of the gains.
        dtype: the dtype of the gains.
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
        """Return each vector divided by its root mean square, times the gains."""
        return rms_norm(Q, self.query), rms_norm(K, self.key)


def rms_norm(x: Float[Tensor, "*rest d"], norm: nn.Module) -> Float[Tensor, "*rest d"]:
    """Return ``norm(x)`` in the dtype of ``x``; computed in float32, the dtype of the gains, under autocast."""
    if autocast_dtype(x.device) is not None:
        return norm(x.float()).to(x.dtype)
    return norm(x)


class HeadNorm(nn.Module):
    """``(x - mean) / √(variance + eps)`` over the features of each head, times gains, plus offsets: a group norm.

    Args:
        num_heads: H.
        width: w, the features of a head.
        eps: keeps a head without variance finite.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    def __init__(
        self,
        num_heads: int,
        width: int,
        *,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(num_heads * width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_heads * width, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the gains to one and the offsets to zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, heads: Float[Tensor, "B H N w"]) -> Float[Tensor, "B H N w"]:
        """Return the normalized heads."""
        weight, bias = (part.view(-1, 1, self.width) for part in (self.weight, self.bias))
        return torch.addcmul(bias, F.layer_norm(heads, (self.width,), eps=self.eps), weight).to(heads.dtype)

    def keep_heads(self, heads: list[int]) -> None:
        """Keep these heads, in place."""
        channels = head_channels(heads, self.width)
        self.weight, self.bias = select_channels(self.weight, channels), select_channels(self.bias, channels)


class OutputGate(nn.Module):
    """``heads · sigmoid(x W_G)``: each token gates the output of its heads.

    Source: Qiu et al. 2025, "Gated Attention for Large Language Models", arXiv:2505.06708, section 2 (the gate after
    the attention, by element or by head).

    Args:
        embed_dim: D.
        num_heads: H.
        width: the number of gates per head, d (one per feature) or 1.
        bias: whether the projection has a bias.
        device: the device of the projection.
        dtype: the dtype of the projection.
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
        """Return the gated heads."""
        gates = torch.sigmoid(self.projection(x)).unflatten(-1, (-1, self.width))
        return heads * gates.transpose(1, 2)

    def keep_heads(self, heads: list[int]) -> None:
        """Keep the gates of these heads, in place."""
        select_features(self.projection, rows=head_channels(heads, self.width))


def as_multihead(layer: nn.Module) -> MultiHeadBase:
    """Return ``layer`` if it is a `MultiHeadBase`.

    Raises:
        UnsupportedError: for any other layer.
    """
    if not isinstance(layer, MultiHeadBase):
        raise UnsupportedError(
            f"{type(layer).__name__} has no separate heads; it must be an attnlab.nn.multihead.MultiHeadBase"
        )
    return layer
