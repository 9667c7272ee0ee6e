"""The attention of GPT-2: ``c_attn`` and ``c_proj`` of `GPT2Attention`, whose weights are stored transposed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from attnlab.integrations.huggingface._weights import require, require_equal
from attnlab.models.multihead import MultiAttention  # type: ignore[import-not-found]
from attnlab.nn.attention import copy_weights

modeling: Any = import_module("transformers.models.gpt2.modeling_gpt2")


def from_gpt2(layer: Any) -> MultiAttention:
    """Convert a `GPT2Attention` exactly; the result is causal.

    Converts both projections and the attention dropout. The dropout after the last projection (``resid_pdrop``) is not
    part of attention.

    Args:
        layer: a `GPT2Attention` (``model.h[i].attn``).

    Raises:
        TypeError: for a layer of another class.
        ValueError: for cross-attention, or scores that are not divided by √d (``scale_attn_weights=False``,
            ``scale_attn_by_inverse_layer_idx=True``).
    """
    _check(layer, "from_gpt2")
    ours = MultiAttention(layer.embed_dim, layer.num_heads, causal=True, dropout=layer.attn_dropout.p).to(
        layer.c_attn.weight.device, layer.c_attn.weight.dtype
    )
    copy_weights(ours.qkv, layer.c_attn.weight.mT, layer.c_attn.bias)
    copy_weights(ours.output, layer.c_proj.weight.mT, layer.c_proj.bias)
    return ours.train(layer.training)


def to_gpt2(ours: MultiAttention, layer: Any) -> Any:
    """The inverse of `from_gpt2`: copy our parameters and dropout into ``layer``.

    Args:
        ours: the layer to convert; causal.
        layer: a `GPT2Attention` of the same shape.

    Returns:
        ``layer``.

    Raises:
        TypeError: for a layer of another class.
        ValueError: if the shapes differ, or our layer has positions.
    """
    _check(layer, "to_gpt2")
    sizes = {"embed_dim": layer.embed_dim, "num_heads": layer.num_heads, "num_kv_heads": layer.num_heads}
    require_equal(ours, "GPT-2", "none", **sizes, causal=True)
    if ours.qkv.bias is None:
        raise ValueError("GPT-2's projections have a bias, but this layer was built with bias=False")
    copy_weights(layer.c_attn, ours.qkv.weight.mT, ours.qkv.bias)
    copy_weights(layer.c_proj, ours.output.weight.mT, ours.output.bias)
    layer.attn_dropout.p = ours.dropout
    return layer


def _check(layer: Any, name: str) -> None:
    require(layer, modeling.GPT2Attention, name)
    if not layer.scale_attn_weights or layer.scale_attn_by_inverse_layer_idx:
        raise ValueError(
            "this GPT2Attention does not scale its scores by 1/√head_dim (scale_attn_weights=False or "
            "scale_attn_by_inverse_layer_idx=True), as our layers always do"
        )
