"""Multi-head attention: several heads, each with its own map, over slices of one width."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.attention import Attention, Card, accepts_emd_dim, linear
from attnlab.cache import Cache
from attnlab.engines.softmax import softmax_attention, softmax_weights
from attnlab.masks import BoundMask
from attnlab.positions import make


class MultiAttention(Attention):
    """``concat(head_1, ..., head_h) W_O`` with ``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` and ``d_k = D / h``.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5 (see attnlab.positions).
    """

    card = Card(
        title="Multi-head attention",
        summary="several heads side by side: each looks at its own places",
        paper="Attention Is All You Need",
        authors="Vaswani et al.",
        year=2017,
        arxiv="1706.03762",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps over slices of the width",
        use_case="the default; tasks that read several places at once",
        supports=("causal", "mask", "bias", "context", "cache", "weights", "equivariant"),
    )

    packs = True

    @accepts_emd_dim
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary", "alibi", "t5"] = "none",
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout)
        self.qkv = linear(embed_dim, 3 * embed_dim, bias=bias)  # W_Q, W_K and W_V of all heads in one product
        self.output = linear(embed_dim, embed_dim, bias=bias)  # W_O
        self.positions = make(positions, num_heads=num_heads, head_dim=self.head_dim, causal=causal)
        if positions != "none":
            self._knows_order(
                packs=positions == "rotary"
            )  # the others add a matrix, as large as the packed row squared

    def _weights(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B H N M"]:
        Q, K, _ = self._project(x, context)
        Q, K, bias = self._place(Q, K, bias, context)
        return softmax_weights(Q, K, mask, bias)

    def _mix(
        self,
        weights: Float[Tensor, "B H N M"],
        x: Float[Tensor, "B N D"],
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        _, _, V = self._project(x, context)
        return self.output(self._concat(weights @ V))

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project(x, context)
        Q, K, bias = self._place(Q, K, bias, context, cache)
        if cache is not None:
            K, V = cache.append(K, V)
        dropout = self.dropout if self.training else 0.0
        heads = softmax_attention(Q, K, V, mask, bias, dropout=dropout)  # √d_k: each head sums over its own d_k
        return self.output(self._concat(heads))

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Q (B, H, N, d), K and V (B, H, M, d): views into one product, without a copy."""
        if context is None:
            Q, K, V = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        else:
            D, weight, bias = self.embed_dim, self.qkv.weight, self.qkv.bias
            Q = F.linear(x, weight[:D], None if bias is None else bias[:D]).unflatten(-1, (self.num_heads, -1))
            KV = F.linear(context, weight[D:], None if bias is None else bias[D:])
            K, V = KV.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(-3)
        return Q.transpose(1, 2), K.transpose(1, 2), V.transpose(1, 2)

    def _place(
        self, Q: Tensor, K: Tensor, bias: Tensor | None, context: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Q and K turned by their places, and the bias of distance added to ``bias``."""
        if self.positions.name == "none":
            return Q, K, bias
        first, kept = (0, 0) if cache is None else (cache.length, cache.kept)
        Q, K = self.positions.rotate(Q, first), self.positions.rotate(K, first)
        own = self.positions.bias(Q.shape[2], kept + K.shape[2])
        if own is None:
            return Q, K, bias
        return Q, K, own.to(Q.dtype) if bias is None else bias + own.to(bias.dtype)

    @staticmethod
    def _concat(heads: Float[Tensor, "B H N d"]) -> Float[Tensor, "B N D"]:
        return heads.transpose(1, 2).flatten(2)

    @classmethod
    def from_torch(cls, layer: nn.MultiheadAttention, *, causal: bool = False) -> MultiAttention:
        """The same attention with the same weights, exactly.

        Raises:
            ValueError: for what `nn.MultiheadAttention` can do and this cannot: another width of keys or values
                (kdim, vdim), add_bias_kv, add_zero_attn.
        """
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError(
                "only an nn.MultiheadAttention without kdim, vdim, add_bias_kv and add_zero_attn can be converted"
            )
        weight = layer.in_proj_weight
        ours = cls(
            embed_dim=layer.embed_dim,
            num_heads=layer.num_heads,
            causal=causal,
            dropout=layer.dropout,
            bias=layer.in_proj_bias is not None,
        ).to(weight.device, weight.dtype)
        _copy(ours.qkv, weight, layer.in_proj_bias)
        _copy(ours.output, layer.out_proj.weight, layer.out_proj.bias)
        return ours.train(layer.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """An `nn.MultiheadAttention` (batch_first) with the same weights, exactly.

        ``causal`` is an argument of its forward, not of the layer: give it ``attn_mask`` there.

        Raises:
            ValueError: for a layer with positions, which theirs has not.
        """
        if (positions := self.positions.name) != "none":
            raise ValueError(f"nn.MultiheadAttention knows no positions, and this layer has {positions}")
        weight, bias = self.qkv.weight, self.qkv.bias
        theirs = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, dropout=self.dropout, bias=bias is not None, batch_first=True
        ).to(weight.device, weight.dtype)
        with torch.no_grad():
            theirs.in_proj_weight.copy_(weight)
            if bias is not None:
                theirs.in_proj_bias.copy_(bias)
        _copy(theirs.out_proj, self.output.weight, self.output.bias)
        return theirs.train(self.training)


def _copy(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
