"""Weights for changed scores, and the values that they average, for every mechanism."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mechanisms import supporting
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import padding
from attnlab.nn.attention import Attention, UnsupportedError
from attnlab.nn.recurrent import RecurrentBase
from attnlab.ops.attention_map import AttentionMap

B, N, D = 2, 13, 32
TEMPERATURE = 1.7
CHANGES: dict[str, Any] = {"temperature": TEMPERATURE, "scale": False, "softcap": 0.3, "sink": 0.5}

PLAIN_SOFTMAX = [
    "additive", "bigbird", "chunked", "dsa", "groupedquery", "latent", "longformer", "multihead", "reformer",
    "selfhead", "slidingwindow", "strided",
]  # fmt: skip
"""Mechanisms whose scores are one product per pair, without a bias, under one softmax."""

SELECTIVE = {
    "dsa": {"top_k": 3},
    "nsa": {"compress_block": 2, "compress_stride": 2, "select_block": 2, "window_size": 3},
}


def build(name: str) -> Attention:
    torch.manual_seed(0)
    layer = registry.load(name)(D, **SELECTIVE.get(name, {})).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def dense(weights: AttentionMap) -> Tensor:
    by_rows, M = weights.materialize(), weights.shape[3]
    torch.testing.assert_close(weights.apply(torch.eye(M, dtype=torch.float64)[None, None]), by_rows)
    return by_rows


@pytest.mark.parametrize("name", supporting("weights"))
def test_changed_scores(name: str) -> None:
    weights = build(name).attention_map(tokens())
    expected = dense(weights)
    assert weights.with_scores() is weights
    for option, value in CHANGES.items():
        if option in weights.changes:
            assert (dense(weights.with_scores(**{option: value})) - expected).abs().max() > 1e-4, option
        else:
            with pytest.raises(ValueError, match=rf"cannot be changed by {option}; they support"):
                weights.with_scores(**{option: value})
    if "scale" in weights.changes:
        layer = build(name)
        width = layer.head_dim // 2 if name == "differential" else layer.head_dim + getattr(layer, "rope_head_dim", 0)
        same = weights.with_scores(scale=False, temperature=math.sqrt(width))
        torch.testing.assert_close(dense(same), expected)
    if "softcap" in weights.changes:
        torch.testing.assert_close(dense(weights.with_scores(softcap=1e6)), expected)
    if "sink" in weights.changes and name != "sinks":
        torch.testing.assert_close(dense(weights.with_scores(sink=-1e4)), expected)


@pytest.mark.parametrize("name", PLAIN_SOFTMAX)
def test_a_temperature_is_a_power_of_softmax_weights(name: str) -> None:
    weights = build(name).attention_map(tokens())
    expected = dense(weights) ** (1 / TEMPERATURE)
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(dense(weights.with_scores(temperature=TEMPERATURE)), expected)


def test_a_sink_is_one_more_key() -> None:
    weights = build("multihead").attention_map(tokens())
    scores = weights.q @ weights.k.mT / math.sqrt(weights.q.shape[-1])  # type: ignore[attr-defined]
    logit = torch.full_like(scores[..., :1], 0.5)
    torch.testing.assert_close(
        dense(weights.with_scores(sink=0.5)), torch.cat([logit, scores], -1).softmax(-1)[..., 1:]
    )
    capped = 0.3 * torch.tanh(scores / TEMPERATURE / 0.3)
    changed = weights.with_scores(softcap=0.3, temperature=TEMPERATURE)
    torch.testing.assert_close(dense(changed), capped.softmax(-1))


@pytest.mark.parametrize("name", supporting("weights"))
def test_values_are_what_the_weights_average(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = build(name), tokens()
    mask = padding(torch.tensor([N, 7])) if "padding" in registry.entry(name).card.supports else None
    if name == "longformer":
        with pytest.raises(UnsupportedError, match="two sets of values"):
            layer.values(x)
        return
    values, weights = layer.values(x, mask=mask), layer.attention_weights(x, mask=mask)
    assert values.shape[:3] == (B, layer.num_heads, N)
    if isinstance(layer, RecurrentBase):
        heads: list[Tensor] = []
        finish = layer._finish_heads
        monkeypatch.setattr(layer, "_finish_heads", lambda out, inputs: (heads.append(out), finish(out, inputs))[1])
        layer(x, mask=mask)
        torch.testing.assert_close((weights @ values)[0], heads[0][0])
        torch.testing.assert_close((weights @ values)[1, :, :7], heads[0][1, :, :7])
        return
    order = torch.randperm(N)
    monkeypatch.setattr(layer, "_values", lambda *args, **options: values[:, :, order])
    out = layer.apply_weights(weights[..., order], x, mask=mask)
    torch.testing.assert_close(out, layer(x, mask=mask))


@pytest.mark.parametrize("name", supporting("weights", "context"))
def test_values_of_a_context(name: str) -> None:
    layer, context = build(name), tokens(7)
    torch.testing.assert_close(layer.values(tokens(), context=context), layer.values(context))


def test_values_need_the_capability() -> None:
    class NoValues(type(build("multihead"))):  # type: ignore[misc]
        _values = Attention._values

    with pytest.raises(UnsupportedError, match="NoValues does not define its values"):
        NoValues(D).values(torch.randn(B, N, D))
