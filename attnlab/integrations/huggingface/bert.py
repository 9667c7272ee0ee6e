"""The attention of BERT: the projections of `BertSelfAttention` and the ``dense`` of `BertSelfOutput`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from attnlab.integrations.huggingface._weights import load, projections, require, require_equal, require_positions
from attnlab.models.multihead import MultiAttention  # type: ignore[import-not-found]
from attnlab.nn.attention import copy_weights

modeling: Any = import_module("transformers.models.bert.modeling_bert")


def from_bert(layer: Any) -> MultiAttention:
    """Convert a `BertAttention` exactly.

    Converts the query, key, value and output projections, the attention dropout, and whether it is causal. The dropout,
    the residual sum and the layer norm that follow in `BertAttention` are not part of attention.

    Args:
        layer: a `BertAttention` (``model.encoder.layer[i].attention``).

    Raises:
        TypeError: for a layer of another class.
        ValueError: for cross-attention, or if num_heads * head_dim is not the embedding size.
    """
    require(layer, modeling.BertAttention, "from_bert")
    self_attention = _self_attention(layer)
    ours = MultiAttention(
        self_attention.query.in_features,
        self_attention.num_attention_heads,
        causal=self_attention.is_causal,
        dropout=self_attention.dropout.p,
    ).to(self_attention.query.weight.device, self_attention.query.weight.dtype)
    dense = layer.output.dense
    load(ours, *((p.weight, p.bias) for p in (self_attention.query, self_attention.key, self_attention.value, dense)))
    return ours.train(self_attention.training)


def to_bert(ours: MultiAttention, layer: Any) -> Any:
    """The inverse of `from_bert`: copy our parameters and dropout into ``layer``.

    Args:
        ours: the layer to convert.
        layer: a `BertAttention` of the same shape; its layer norm is not changed.

    Returns:
        ``layer``.

    Raises:
        TypeError: for a layer of another class.
        ValueError: if the shapes differ, or our layer has positions.
    """
    require(layer, modeling.BertAttention, "to_bert")
    self_attention = _self_attention(layer)
    require_equal(
        ours,
        embed_dim=self_attention.query.in_features,
        num_heads=self_attention.num_attention_heads,
        causal=self_attention.is_causal,
    )
    require_equal(ours, num_kv_heads=ours.num_heads)
    require_positions(ours, "none", "BERT")
    query, key, value, output = projections(ours)
    if output[1] is None:
        raise ValueError("BERT's projections have a bias, but this layer was built with bias=False")
    for theirs, weights in (
        (self_attention.query, query),
        (self_attention.key, key),
        (self_attention.value, value),
        (layer.output.dense, output),
    ):
        copy_weights(theirs, *weights)
    self_attention.dropout.p = ours.dropout
    return layer


def _self_attention(layer: Any) -> Any:
    if layer.is_cross_attention:
        raise ValueError(
            "this BertAttention is cross-attention with its own keys; only self-attention can be converted"
        )
    self_attention = layer.self
    if self_attention.all_head_size != self_attention.query.in_features:
        raise ValueError(
            f"num_heads * head_dim is {self_attention.all_head_size}, but the embedding size is "
            f"{self_attention.query.in_features}"
        )
    return self_attention
