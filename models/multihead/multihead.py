"""Multi-head attention: several heads, each with its own attention weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from attnlab.nn.attention import Card, accepts_emd_dim, copy_weights
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class MultiAttention(MultiHeadBase):
    """``concat(head_1, ..., head_h) W_O`` with ``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` and ``d_k = D / h``.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Multi-head attention",
        summary="several heads in parallel, each with its own attention weights",
        paper="Attention Is All You Need",
        authors="Vaswani et al.",
        year=2017,
        arxiv="1706.03762",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices over slices of the width",
        use_case="the default; tasks that read several positions at once",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
        parent="selfhead",
    )

    @accepts_emd_dim
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
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

    @classmethod
    def from_torch(
        cls, layer: nn.MultiheadAttention, *, causal: bool = False, batch_first: bool = False
    ) -> MultiAttention:
        """Return the same layer with the same parameters.

        Args:
            layer: the layer to convert.
            causal: whether a token attends only to itself and to earlier tokens.
            batch_first: for a layer with ``batch_first=False``, True confirms that its inputs will be transposed from
                (N, B, D) to (B, N, D); `attnlab.integrations.pytorch.from_torch` transposes them itself.

        Raises:
            TypeError: for another layer than `nn.MultiheadAttention`.
            ValueError: for a layer with kdim, vdim, add_bias_kv or add_zero_attn, or with ``batch_first=False`` and
                without confirmation.
        """
        if not isinstance(layer, nn.MultiheadAttention):
            raise TypeError(f"from_torch converts an nn.MultiheadAttention, not a {type(layer).__name__}")
        if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError(
                "only an nn.MultiheadAttention without kdim, vdim, add_bias_kv and add_zero_attn can be converted"
            )
        if not (layer.batch_first or batch_first):
            raise ValueError(
                "this nn.MultiheadAttention has batch_first=False and takes (length, batch, D), the converted layer "
                "(batch, length, D); transpose its inputs, and confirm that by from_torch(..., batch_first=True)"
            )
        weight = layer.in_proj_weight
        converted = cls(
            embed_dim=layer.embed_dim,
            num_heads=layer.num_heads,
            causal=causal,
            dropout=layer.dropout,
            bias=layer.in_proj_bias is not None,
        ).to(weight.device, weight.dtype)
        copy_weights(converted.qkv, weight, layer.in_proj_bias)
        copy_weights(converted.output, layer.out_proj.weight, layer.out_proj.bias)
        return converted.train(layer.training)

    def to_torch(self) -> nn.MultiheadAttention:
        """Return an `nn.MultiheadAttention` (batch_first) with the same parameters.

        It has no ``causal``: pass ``attn_mask`` to its forward.

        Raises:
            ValueError: for a layer with positions, or with pruned heads.
        """
        if (positions := self.positions.name) != "none":
            raise ValueError(f"nn.MultiheadAttention has no positional encoding, and this layer has {positions}")
        if self.num_heads * self.head_dim != self.embed_dim:
            raise ValueError(
                f"nn.MultiheadAttention needs num_heads · head_dim = embed_dim ({self.embed_dim}), and this layer has "
                f"{self.num_heads} heads of width {self.head_dim}"
            )
        weight, bias = self.qkv.weight, self.qkv.bias
        layer = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, dropout=self.dropout, bias=bias is not None, batch_first=True
        ).to(weight.device, weight.dtype)
        with torch.no_grad():
            layer.in_proj_weight.copy_(weight)
            if bias is not None:
                layer.in_proj_bias.copy_(bias)
        copy_weights(layer.out_proj, self.output.weight, self.output.bias)
        return layer.train(self.training)
