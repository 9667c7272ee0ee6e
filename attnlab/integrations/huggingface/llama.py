"""The attention of Llama: `LlamaAttention`, grouped-query attention with rotary positions."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

from attnlab.integrations.huggingface._weights import load, require, require_equal, store
from attnlab.models.groupedquery import GroupedQueryAttention  # type: ignore[import-not-found]
from attnlab.positions import Rotary

modeling: Any = import_module("transformers.models.llama.modeling_llama")


class LlamaRotary(Rotary):
    """Rotary positions with the frequencies of a Llama, for any ``rope_type`` that does not depend on the length.

    Args:
        config: a `LlamaConfig`.

    Raises:
        ValueError: for frequencies that depend on the length (``dynamic``, ``longrope``), or rotate a part of d.
    """

    def __init__(self, config: Any) -> None:
        rope = config.rope_parameters
        self.kind: str = rope["rope_type"]
        if "dynamic" in self.kind or self.kind == "longrope":
            raise ValueError(f"rope_type {self.kind!r} depends on the length, which is not supported")
        theirs = modeling.LlamaRotaryEmbedding(config)
        if 2 * len(theirs.inv_freq) != config.head_dim:
            raise ValueError(f"this rope rotates {2 * len(theirs.inv_freq)} of {config.head_dim} channels per head")
        super().__init__(config.head_dim, base=rope["rope_theta"])
        self.frequencies = tuple(theirs.inv_freq.double().tolist())
        self.attention_factor = float(theirs.attention_scaling)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, rope_type={self.kind!r}"


def from_llama(layer: Any) -> GroupedQueryAttention:
    """Convert a `LlamaAttention` exactly; the result is causal.

    Converts the four projections, the grouping of heads, the rotary frequencies with their scaling, and the attention
    dropout. Outputs differ only by rounding: angles are computed in float64 here and in float32 there.

    Args:
        layer: a `LlamaAttention` (``model.layers[i].self_attn``).

    Raises:
        TypeError: for a layer of another class.
        ValueError: for rotary positions that `LlamaRotary` refuses.
    """
    require(layer, modeling.LlamaAttention, "from_llama")
    config, weight = layer.config, layer.q_proj.weight
    ours = GroupedQueryAttention(
        config.hidden_size,
        config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=layer.head_dim,
        causal=True,
        dropout=layer.attention_dropout,
        bias=layer.q_proj.bias is not None,
        positions="rotary",
    )
    ours.positions = LlamaRotary(config)
    ours = ours.to(weight.device, weight.dtype)
    load(ours, (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj))
    return ours.train(layer.training)


def to_llama(ours: GroupedQueryAttention, layer: Any) -> Any:
    """The inverse of `from_llama`: copy our parameters and dropout into ``layer``.

    Args:
        ours: the layer to convert; causal, with the rotary positions of ``layer``.
        layer: a `LlamaAttention` of the same shape.

    Returns:
        ``layer``.

    Raises:
        TypeError: for a layer of another class.
        ValueError: if the shapes differ, or the rotary frequencies differ.
    """
    require(layer, modeling.LlamaAttention, "to_llama")
    config = layer.config
    require_equal(
        ours,
        "Llama",
        "rotary",
        embed_dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=layer.head_dim,
        causal=True,
    )
    assert isinstance(ours.positions, Rotary)
    wanted, have = LlamaRotary(config), ours.positions
    same = (
        have.layout == wanted.layout
        and len(have.frequencies) == len(wanted.frequencies)
        and all(map(partial(math.isclose, rel_tol=1e-6), have.frequencies, wanted.frequencies))
        and abs(have.attention_factor - wanted.attention_factor) < 1e-6
    )
    if not same:
        raise ValueError(f"the rotary positions differ: ours are {ours.positions}, theirs {wanted}")
    biased = layer.q_proj.bias is not None
    if biased != (ours.qkv.bias is not None):
        raise ValueError(f"the Llama layer has attention_bias={biased}, but this layer has bias={not biased}")
    store(ours, (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj))
    layer.attention_dropout = ours.dropout
    return layer
