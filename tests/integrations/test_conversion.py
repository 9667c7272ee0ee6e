"""The attention of BERT, GPT-2 and Llama converted to ours and back: the same parameters, the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'attnlab[hf]'")

import torch
from hub import LONG, B, N, model, padded
from torch import Tensor, nn

from attnlab import KVCache
from attnlab.integrations.huggingface import from_bert, from_gpt2, from_llama, to_bert, to_gpt2, to_llama
from attnlab.masks import from_attention_mask
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention

SCALED = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "default": {"rope_theta": 300.0},
    "linear": {"rope_theta": 300.0, "factor": 2.0},
    "yarn": SCALED,
    "llama3": {**SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
CONVERSIONS = {"Bert": (from_bert, to_bert), "GPT2": (from_gpt2, to_gpt2), "Llama": (from_llama, to_llama)}


def theirs(family: str, *, rope: str = "", **options: Any) -> Any:
    if rope:
        options["rope_parameters"] = {"rope_type": rope, **ROPES.get(rope, SCALED)}
    made = model(family, "eager", **options)
    if family == "Bert":
        return made.encoder.layer[1].attention
    return made.transformer.h[1].attn if family == "GPT2" else made.model.layers[1].self_attn


def output(family: str, layer: Any, x: Tensor, real: Tensor | None) -> Tensor:
    """The output of the last projection of their layer, with their ``sdpa``: eager rounds to float32."""
    layer.config = getattr(layer, "config", None) or layer.self.config
    layer.config._attn_implementation = "sdpa"
    allowed = torch.ones(B, 1, x.shape[1], x.shape[1], dtype=torch.bool)
    allowed = allowed if family == "Bert" else allowed.tril()
    allowed = allowed if real is None else allowed & real[:, None, None].bool()
    if family == "Bert":
        return layer.output.dense(layer.self(x, attention_mask=allowed)[0])
    if family == "GPT2":
        return layer(x, attention_mask=allowed)[0]
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotations = LlamaRotaryEmbedding(layer.config)(x, torch.arange(x.shape[1])[None])
    return layer(x, position_embeddings=rotations, attention_mask=allowed)[0]


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("length", [N, LONG])
@pytest.mark.parametrize("family", CONVERSIONS)
def test_the_same_outputs_and_gradients(family: str, length: int, side: str) -> None:
    layer, real = theirs(family, dtype=torch.float64), padded(side, length)
    ours = CONVERSIONS[family][0](layer)
    assert not ours.training
    x = torch.randn(B, length, ours.embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    visible = torch.ones(B, length, 1) if real is None else real.unsqueeze(-1)
    outs = [output(family, layer, x, real), ours(x, mask=None if real is None else from_attention_mask(real))]
    outs = [out * visible for out in outs]
    slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    limit = 1e-10 if family != "Llama" else 1e-5 * (1 + length / N)  # their angles are float32
    for expected, actual in (outs, slopes):
        assert expected.abs().max() > 0.1
        assert (actual - expected).abs().max() < limit * expected.abs().max()


@pytest.mark.parametrize("rope", ROPES)
def test_llama_rotary_frequencies(rope: str) -> None:
    layer = theirs("Llama", rope=rope)
    ours = from_llama(layer)
    assert ours.positions.kind == rope
    x = torch.randn(B, 29, ours.embed_dim, generator=torch.Generator().manual_seed(0))
    assert (ours(x) - output("Llama", layer, x, None)).abs().max() < 1e-4
    if rope != "default":
        assert (from_llama(theirs("Llama", rope="default"))(x) - ours(x)).abs().max() > 1e-2


def test_llama_decodes_with_our_cache() -> None:
    ours, cache = from_llama(theirs("Llama")), KVCache(N)
    x = torch.randn(B, N, ours.embed_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        steps = torch.cat([ours(part, cache=cache) for part in (x[:, :5], x[:, 5:6], x[:, 6:])], 1)
        assert (steps - ours(x)).abs().max() < 1e-4
    assert cache.bytes_per_token == B * 2 * 2 * 4 * 4, "items, keys and values, heads of keys, width, bytes"


@pytest.mark.parametrize("family", CONVERSIONS)
def test_there_and_back_is_the_same_to_the_last_bit(family: str) -> None:
    there, back = CONVERSIONS[family]
    rates = {"Bert": "attention_probs_dropout_prob", "GPT2": "attn_pdrop", "Llama": "attention_dropout"}
    biased = {"attention_bias": True} if family == "Llama" else {}
    layer, other = theirs(family, **{rates[family]: 0.2}, **biased), theirs(family, **biased)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ours = there(layer.train())
    assert ours.dropout == 0.2
    assert ours.training
    assert back(ours, other) is other
    expected = dict(layer.named_parameters())
    for name, parameter in other.named_parameters():
        assert (parameter == 0).all() if "LayerNorm" in name else torch.equal(parameter, expected[name])
    again = there(other)
    assert again.dropout == 0.2
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def cross(family: str) -> Any:
    if family == "Bert":
        return model("Bert", "eager", is_decoder=True, add_cross_attention=True).encoder.layer[0].crossattention
    return model("GPT2", "eager", add_cross_attention=True).transformer.h[0].crossattention


@pytest.mark.parametrize(
    ("convert", "layer", "error", "message"),
    [
        (from_bert, lambda: nn.Linear(2, 2), TypeError, "from_bert takes a BertAttention, got Linear"),
        (from_gpt2, lambda: theirs("Bert"), TypeError, "from_gpt2 takes a GPT2Attention, got BertAttention"),
        (from_llama, lambda: theirs("GPT2"), TypeError, "from_llama takes a LlamaAttention, got GPT2Attention"),
        (from_bert, lambda: cross("Bert"), ValueError, "is cross-attention"),
        (from_gpt2, lambda: cross("GPT2"), ValueError, "is cross-attention"),
        (from_gpt2, lambda: theirs("GPT2", scale_attn_weights=False), ValueError, "does not scale its scores by 1/√h"),
        (from_gpt2, lambda: theirs("GPT2", scale_attn_by_inverse_layer_idx=True), ValueError, "does not scale its"),
        (from_llama, lambda: theirs("Llama", rope="dynamic"), ValueError, "'dynamic' depends on the length"),
    ],
)
def test_a_layer_that_cannot_be_converted_is_refused(
    convert: Any, layer: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert(layer())


def llama(**options: Any) -> GroupedQueryAttention:
    usual = {"num_kv_heads": 2, "causal": True, "bias": False, "positions": "rotary"}
    return GroupedQueryAttention(24, 6, **{**usual, **options})


@pytest.mark.parametrize(
    ("family", "ours", "message"),
    [
        ("Bert", lambda: MultiAttention(12, 2), "has num_heads=2, but the other layer has 3"),
        ("Bert", lambda: MultiAttention(12, 3, positions="alibi"), "has none positions .*, not alibi"),
        ("Bert", lambda: MultiAttention(12, 3, bias=False), "built with bias=False"),
        ("Bert", lambda: GroupedQueryAttention(12, 3, num_kv_heads=1), "num_kv_heads=1, but the other layer has 3"),
        ("Bert", lambda: from_bert(theirs("Bert", is_decoder=True)), "has causal=True, but the other layer has False"),
        ("GPT2", lambda: MultiAttention(12, 3), "has causal=False, but the other layer has True"),
        ("GPT2", lambda: MultiAttention(12, 3, causal=True, bias=False), "built with bias=False"),
        ("Llama", lambda: llama(num_kv_heads=3), "num_kv_heads=3, but the other layer has 2"),
        ("Llama", lambda: llama(positions="none"), "has rotary positions .*, not none"),
        ("Llama", lambda: llama(bias=True), "attention_bias=False, but this layer has bias=True"),
        ("Llama", lambda: from_llama(theirs("Llama", rope="default")), r"positions differ: ours are .*base=300"),
    ],
)
def test_layers_of_another_shape_are_refused(family: str, ours: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CONVERSIONS[family][1](ours(), theirs(family))


def test_rotary_positions_of_our_own_are_converted() -> None:
    to_llama(llama(), theirs("Llama"))  # both have the base 10000
