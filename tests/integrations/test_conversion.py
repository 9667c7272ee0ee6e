"""Conversion of the attention of BERT, GPT-2 and Llama in both directions: equal parameters and outputs."""

from __future__ import annotations

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

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 300.0},
    "linear": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
    "yarn": YARN,
    "llama3": LLAMA3,
}


def theirs(family: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    made = model(family, "eager", dtype=dtype, **options)
    return {
        "Bert": lambda: made.encoder.layer[1].attention,
        "GPT2": lambda: made.transformer.h[1].attn,
        "Llama": lambda: made.model.layers[1].self_attn,
    }[family]()


CONVERSIONS = {"Bert": (from_bert, to_bert), "GPT2": (from_gpt2, to_gpt2), "Llama": (from_llama, to_llama)}


def answer(family: str, layer: Any, x: Tensor, real: Tensor | None) -> Tensor:
    """The output of the original layer, with ``sdpa``, because ``eager`` rounds differently."""
    layer.config = getattr(layer, "config", None) or layer.self.config
    layer.config._attn_implementation = "sdpa"
    allowed = torch.ones(B, 1, x.shape[1], x.shape[1], dtype=torch.bool)
    allowed = allowed if family == "Bert" else allowed.tril()
    allowed = allowed if real is None else allowed & real[:, None, None].bool()
    if family == "Bert":
        return layer.output.dense(layer.self(x, attention_mask=allowed)[0])
    if family == "GPT2":
        return layer.c_proj.forward(_before(layer, x, allowed))
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    places = LlamaRotaryEmbedding(layer.config)(x, torch.arange(x.shape[1])[None])
    return layer(x, position_embeddings=places, attention_mask=allowed)[0]


def _before(layer: Any, x: Tensor, allowed: Tensor) -> Tensor:
    kept, layer.c_proj = layer.c_proj, nn.Identity()
    try:
        return layer(x, attention_mask=allowed)[0]
    finally:
        layer.c_proj = kept


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("length", [N, LONG])
@pytest.mark.parametrize("family", CONVERSIONS)
def test_outputs_and_gradients_are_equal(family: str, length: int, side: str) -> None:
    layer, real = theirs(family, dtype=torch.float64), padded(side, length)
    ours = CONVERSIONS[family][0](layer)
    assert not ours.training
    x = torch.randn(B, length, ours.embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shown = torch.ones(B, length, 1) if real is None else real.unsqueeze(-1)
    found = []
    for run in (
        lambda x: answer(family, layer, x, real),
        lambda x: ours(x, mask=None if real is None else from_attention_mask(real)),
    ):
        given = x.clone().requires_grad_()
        out = run(given) * shown
        out.square().sum().backward()
        found.append((out.detach(), given.grad))
    limit = 1e-10 if family != "Llama" else 1e-5 * (1 + length / N)  # their angles are float32
    for a, b in zip(*found, strict=True):
        assert a.abs().max() > 0.1
        assert (a - b).abs().max() < limit * a.abs().max()


@pytest.mark.parametrize("rope", ROPES)
def test_llama_rotary_frequencies(rope: str) -> None:
    layer = theirs("Llama", rope_parameters=ROPES[rope])
    ours = from_llama(layer)
    x = torch.randn(B, 29, ours.embed_dim, generator=torch.Generator().manual_seed(0))
    assert (ours(x) - answer("Llama", layer, x, None)).abs().max() < 1e-4
    if rope != "default":
        other = from_llama(theirs("Llama", rope_parameters={"rope_type": "default", "rope_theta": 300.0}))
        assert (other(x) - ours(x)).abs().max() > 1e-2
    assert ours.positions.kind == rope


def test_llama_decodes_with_our_cache() -> None:
    ours, cache = from_llama(theirs("Llama")), KVCache(N)
    x = torch.randn(B, N, ours.embed_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        steps = torch.cat([ours(part, cache=cache) for part in (x[:, :5], x[:, 5:6], x[:, 6:])], 1)
        assert (steps - ours(x)).abs().max() < 1e-4
    assert cache.bytes_per_token == B * 2 * 2 * 4 * 4, "items, keys and values, heads of keys, width, bytes"


@pytest.mark.parametrize("family", CONVERSIONS)
def test_round_trip_is_bit_identical(family: str) -> None:
    there, back = CONVERSIONS[family]
    rates = {"Bert": "attention_probs_dropout_prob", "GPT2": "attn_pdrop", "Llama": "attention_dropout"}
    layer, other = theirs(family, **{rates[family]: 0.2}), theirs(family)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ours = there(layer.train())
    assert ours.dropout == 0.2
    assert ours.training
    assert back(ours, other) is other
    expected = dict(layer.named_parameters())
    untouched = {name for name in expected if "LayerNorm" in name}
    assert all(torch.equal(p, expected[n]) for n, p in other.named_parameters() if n not in untouched)
    assert all((p == 0).all() for n, p in other.named_parameters() if n in untouched)
    again = there(other)
    assert again.dropout == 0.2
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def test_biases_of_llama_are_converted() -> None:
    layer = theirs("Llama", attention_bias=True)
    ours = from_llama(layer)
    assert torch.equal(ours.qkv.bias[-8:], layer.v_proj.bias)
    assert torch.equal(ours.output.bias, layer.o_proj.bias)
    with pytest.raises(ValueError, match="attention_bias=False, but this layer has bias=True"):
        to_llama(ours, theirs("Llama"))


def test_a_bert_decoder_is_causal() -> None:
    ours = from_bert(theirs("Bert", is_decoder=True))
    assert ours.causal
    with pytest.raises(ValueError, match="has causal=True, but the other layer has False"):
        to_bert(ours, theirs("Bert"))


def cross(family: str) -> Any:
    if family == "Bert":
        return model("Bert", "eager", is_decoder=True, add_cross_attention=True).encoder.layer[0].crossattention
    return model("GPT2", "eager", add_cross_attention=True).transformer.h[0].crossattention


GPT2_SCALED = "does not scale its scores by 1/√head_dim"


@pytest.mark.parametrize(
    ("convert", "layer", "error", "message"),
    [
        (from_bert, lambda: nn.Linear(2, 2), TypeError, "from_bert takes a BertAttention, got Linear"),
        (from_gpt2, lambda: theirs("Bert"), TypeError, "from_gpt2 takes a GPT2Attention, got BertAttention"),
        (from_llama, lambda: theirs("GPT2"), TypeError, "from_llama takes a LlamaAttention, got GPT2Attention"),
        (from_bert, lambda: cross("Bert"), ValueError, "is cross-attention"),
        (from_gpt2, lambda: cross("GPT2"), ValueError, "is cross-attention"),
        (from_gpt2, lambda: theirs("GPT2", scale_attn_weights=False), ValueError, GPT2_SCALED),
        (from_gpt2, lambda: theirs("GPT2", scale_attn_by_inverse_layer_idx=True), ValueError, GPT2_SCALED),
        (
            from_llama,
            lambda: theirs("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10.0, "factor": 2.0}),
            ValueError,
            "rope_type 'dynamic' depends on the length",
        ),
    ],
)
def test_an_unsupported_layer_raises(convert: Any, layer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(layer())


@pytest.mark.parametrize(
    ("back", "ours", "family", "message"),
    [
        (to_bert, lambda: MultiAttention(12, 2), "Bert", "has num_heads=2, but the other layer has 3"),
        (to_bert, lambda: MultiAttention(12, 3, positions="alibi"), "Bert", "has none positions .*, not alibi"),
        (to_bert, lambda: MultiAttention(12, 3, bias=False), "Bert", "built with bias=False"),
        (
            to_bert,
            lambda: GroupedQueryAttention(12, 3, num_kv_heads=1),
            "Bert",
            "num_kv_heads=1, but the other layer has 3",
        ),
        (to_gpt2, lambda: MultiAttention(12, 3), "GPT2", "has causal=False, but the other layer has True"),
        (to_gpt2, lambda: MultiAttention(12, 3, causal=True, bias=False), "GPT2", "built with bias=False"),
        (to_llama, lambda: _llama(num_kv_heads=3), "Llama", "num_kv_heads=3, but the other layer has 2"),
        (to_llama, lambda: _llama(positions="none"), "Llama", "has rotary positions .*, not none"),
    ],
)
def test_a_layer_of_another_shape_raises(back: Any, ours: Any, family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        back(ours(), theirs(family))


def _llama(**options: Any) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        24, 6, **{"num_kv_heads": 2, "causal": True, "bias": False, "positions": "rotary", **options}
    )


def test_other_rotary_frequencies_raise() -> None:
    to_llama(_llama(), theirs("Llama"))  # both have the base 10000
    with pytest.raises(ValueError, match=r"the rotary positions differ: ours are .*base=10000"):
        to_llama(_llama(), theirs("Llama", rope_parameters=ROPES["default"]))
