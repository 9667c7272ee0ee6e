"""Attention with sinks: sinks that take all attention, and sinks that are not trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab.models.sinks import SinkAttention
from attnlab.network.pruning import prune_heads

B, N, H, D = 2, 7, 3, 12


def test_a_very_high_sink_takes_all_attention() -> None:
    layer = perturbed(SinkAttention(D, H))
    with torch.no_grad():
        layer.sink.fill_(800)
    assert_same(layer(random(B, N, D)), layer.output.bias.expand(B, N, D))


@pytest.mark.parametrize("sink", ["learned", "zero"])
def test_only_learned_sinks_receive_gradients(sink: Any) -> None:
    for layer in (whole := perturbed(SinkAttention(D, H, sink=sink)), prune_heads(whole, [1])):
        layer(random(B, N, D)).square().sum().backward()
        assert layer.sink.requires_grad == (sink == "learned")
        assert (layer.sink.grad is not None and bool((layer.sink.grad != 0).all())) == (sink == "learned")
