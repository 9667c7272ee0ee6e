"""The attention of BERT: the projections of `BertSelfAttention` and the ``dense`` of `BertSelfOutput`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from attnlab.integrations.huggingface._weights import load, parts, require, require_places, require_same
from attnlab.models.multihead import MultiAttention  # type: ignore[import-not-found]
from attnlab.nn.attention import copy_weights

modeling: Any = import_module("transformers.models.bert.modeling_bert")


def from_bert(layer: Any) -> MultiAttention:
    """The same attention with the same weights, exactly.

    Converted are query, key, value and the output projection, the dropout of the weights, and whether it is causal.
    What `BertAttention` does after that is not attention: dropout, the residual sum and its layer norm.

    Args:
        layer: a `BertAttention` (``model.encoder.layer[i].attention``).

    Raises:
        TypeError: for another layer.
        ValueError: for cross-attention, or heads that are not as wide as the model together.
    """
    require(layer, modeling.BertAttention, "from_bert")
    own = _own(layer)
    ours = MultiAttention(
        own.query.in_features, own.num_attention_heads, causal=own.is_causal, dropout=own.dropout.p
    ).to(own.query.weight.device, own.query.weight.dtype)
    dense = layer.output.dense
    load(ours, *((p.weight, p.bias) for p in (own.query, own.key, own.value, dense)))
    return ours.train(own.training)


def to_bert(ours: MultiAttention, layer: Any) -> Any:
    """The way back from `from_bert`: our weights and dropout, written into ``layer``.

    Args:
        ours: what to convert.
        layer: a `BertAttention` of the same form; its layer norm is left as it is.

    Returns:
        ``layer``.

    Raises:
        TypeError: for another layer.
        ValueError: where the two are not of the same form, or ours has positions.
    """
    require(layer, modeling.BertAttention, "to_bert")
    own = _own(layer)
    require_same(ours, embed_dim=own.query.in_features, num_heads=own.num_attention_heads, causal=own.is_causal)
    require_same(ours, num_kv_heads=ours.num_heads)
    require_places(ours, "none", "BERT")
    query, key, value, output = parts(ours)
    if output[1] is None:
        raise ValueError("BERT's projections add a bias, and this layer was built with bias=False")
    for theirs, weights in ((own.query, query), (own.key, key), (own.value, value), (layer.output.dense, output)):
        copy_weights(theirs, *weights)
    own.dropout.p = ours.dropout
    return layer


def _own(layer: Any) -> Any:
    if layer.is_cross_attention:
        raise ValueError(
            "this BertAttention looks at another sequence with keys of its own making; convert self-attention only"
        )
    own = layer.self
    if own.all_head_size != own.query.in_features:
        raise ValueError(f"its heads are {own.all_head_size} wide together, and its tokens {own.query.in_features}")
    return own
