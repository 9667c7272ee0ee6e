"""The attention of BERT: the projections of `BertSelfAttention` and the ``dense`` of `BertSelfOutput`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from attnlab.integrations.huggingface._weights import load, require, require_equal, store
from attnlab.models.multihead import MultiAttention  # type: ignore[import-not-found]

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
    self_attention, projections = _parts(layer, "from_bert")
    ours = MultiAttention(
        self_attention.query.in_features,
        self_attention.num_attention_heads,
        causal=self_attention.is_causal,
        dropout=self_attention.dropout.p,
    ).to(self_attention.query.weight.device, self_attention.query.weight.dtype)
    load(ours, projections)
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
    self_attention, projections = _parts(layer, "to_bert")
    require_equal(
        ours,
        "BERT",
        "none",
        embed_dim=self_attention.query.in_features,
        num_heads=self_attention.num_attention_heads,
        num_kv_heads=self_attention.num_attention_heads,
        causal=self_attention.is_causal,
    )
    if ours.output.bias is None:
        raise ValueError("BERT's projections have a bias, but this layer was built with bias=False")
    store(ours, projections)
    self_attention.dropout.p = ours.dropout
    return layer


def _parts(layer: Any, name: str) -> tuple[Any, tuple[nn.Linear, ...]]:
    """The `BertSelfAttention`, and the query, key, value and output projections."""
    require(layer, modeling.BertAttention, name)
    self_attention = layer.self
    if self_attention.all_head_size != self_attention.query.in_features:
        raise ValueError(
            f"num_heads * head_dim is {self_attention.all_head_size}, but the embedding size is "
            f"{self_attention.query.in_features}"
        )
    return self_attention, (self_attention.query, self_attention.key, self_attention.value, layer.output.dense)
