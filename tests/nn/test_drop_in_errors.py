"""Calls in the style of other libraries raise a one-line error that names the replacement."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnlab.masks import padding
from attnlab.models.multihead import MultiAttention
from attnlab.models.selfhead import SelfAttention

B, N, D, H = 2, 5, 12, 3
x = torch.randn(B, N, D)
layer = MultiAttention(D, H)


def encoder(mode: bool) -> Callable[[], Tensor]:
    module = nn.TransformerEncoderLayer(D, H, batch_first=True)
    module.self_attn = MultiAttention(D, H)
    return lambda: module.train(mode)(x)


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "layer(x, x, x)": (lambda: layer(x, x, x), TypeError, "layer(x, context=y) to attend to another sequence"),
    "key_padding_mask=": (
        lambda: layer(x, key_padding_mask=x),
        TypeError,
        "use mask=attnlab.masks.from_key_padding_mask(key_padding_mask)",
    ),
    "attn_mask=": (lambda: layer(x, attn_mask=x), TypeError, "use mask=attnlab.masks.from_attn_mask(attn_mask)"),
    "attention_mask=": (lambda: layer(x, attention_mask=x), TypeError, "use mask=attnlab.masks.from_attention_mask"),
    "need_weights=": (lambda: layer(x, need_weights=True), TypeError, "use layer.attention_weights(x)"),
    "is_causal=": (lambda: layer(x, is_causal=True), TypeError, "use the constructor's causal=True, or"),
    "past_key_values=": (lambda: layer(x, past_key_values=()), TypeError, "use cache=layer.make_cache(capacity)"),
    "bias=": (lambda: layer(x, bias=x), TypeError, "use attn_bias="),
    "a misspelled argument": (lambda: layer(x, maks=None), TypeError, "MultiAttention has no argument maks=; did you"),
    "an unknown argument": (lambda: layer(x, zzz=1), TypeError, "it has mask, attn_bias, context, cache"),
    "batch_first=": (lambda: MultiAttention(D, H, batch_first=True), TypeError, "inputs are always (batch, length,"),
    "kdim=": (lambda: MultiAttention(D, H, kdim=3), TypeError, "project the context first"),
    "batch_first of one head": (lambda: SelfAttention(D, batch_first=True), TypeError, "SelfAttention has no option"),
    "a state dict": (
        lambda: layer.load_state_dict(nn.MultiheadAttention(D, H).state_dict()),
        RuntimeError,
        "attnlab.MultiAttention.from_torch(layer)",
    ),
    "a state dict in a network": (
        lambda: nn.Sequential(layer).load_state_dict(nn.Sequential(nn.MultiheadAttention(D, H)).state_dict()),
        RuntimeError,
        "attnlab.MultiAttention.from_torch(layer)",
    ),
    "self_attn, in training": (encoder(True), TypeError, "attnlab.integrations.pytorch.TorchMHAAdapter"),
    "self_attn, in eval": (encoder(False), TypeError, "attnlab.integrations.pytorch.TorchMHAAdapter"),
    "half": (lambda: layer(x.half()), TypeError, "x.to(torch.float32), or the layer with layer.to(torch.float16)"),
    "double": (lambda: layer(x.double()), TypeError, "x is torch.float64, the parameters of MultiAttention are"),
    "double, padded": (lambda: layer(x.double(), mask=padding(torch.tensor([3, 5]))), TypeError, "x.to(torch.float32)"),
    "integers": (lambda: layer(x.long()), TypeError, "embed indices first, or convert it with x.to(torch.float32)"),
    "integers, padded": (lambda: layer(x.long(), mask=padding(torch.tensor([3, 5]))), TypeError, "embed indices first"),
    "a double context": (lambda: layer(x, context=x.double()), TypeError, "context.to(torch.float32)"),
    "an array": (lambda: layer(np.zeros((B, N, D))), TypeError, "x must be a Tensor, not ndarray"),  # type: ignore[arg-type]
    "a layer on meta": (
        lambda: MultiAttention(D, H, device="meta")(x),
        ValueError,
        "allocate the layer with to_empty()",
    ),
    "tokens on meta": (
        lambda: layer(x.to("meta")),
        ValueError,
        "x is on meta, the parameters of MultiAttention on cpu",
    ),
    "from_torch(nn.Linear)": (
        lambda: MultiAttention.from_torch(nn.Linear(D, D)),  # type: ignore[arg-type]
        TypeError,
        "from_torch converts an nn.MultiheadAttention, not a Linear",
    ),
    "misspelled positions": (lambda: MultiAttention(D, H, positions="rotery"), ValueError, "did you mean rotary?"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_the_replacement(case: str) -> None:
    call, error, message = CASES[case]
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_rope_is_rotary() -> None:
    assert MultiAttention(12, 3, positions="rope").positions.name == "rotary"


def test_other_failures_keep_their_error() -> None:
    broken = MultiAttention(D, H)
    broken.output = nn.Linear(D + 1, D)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        broken(x)


def test_autocast_accepts_another_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).shape == x.shape


@pytest.mark.parametrize("kind", [MultiAttention, SelfAttention])
def test_signatures_show_the_options(kind: type) -> None:
    assert {"embed_dim", "causal", "dropout"} <= set(inspect.signature(kind).parameters)
    assert {"x", "mask", "attn_bias", "context", "cache"} <= set(inspect.signature(kind.forward).parameters)
