"""The attention maps of a network are those of its layers, on the inputs that they get."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import network, task_data
from torch import Tensor

from attnlab.analysis.importance import layers_with_heads, mean_heads, without_heads
from attnlab.analysis.maps import attention_maps, without_weights
from attnlab.nn.attention import Attention, UnsupportedError


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_maps_reproduce_the_outputs_of_their_layers(padded: bool) -> None:
    net = network("selfhead,linear")
    split = task_data(net, padded=padded).validation
    outputs: dict[int, Tensor] = {}
    calls: list[tuple[Tensor, object]] = []
    for i, layer in enumerate(net.mechanisms()):
        layer.register_forward_pre_hook(lambda _, x, more: calls.append((x[0], more["mask"])), with_kwargs=True)
        layer.register_forward_hook(lambda _, __, out, i=i: outputs.update({i: out}))
    net.train()
    maps = attention_maps(net, split.x, split.lengths)
    assert net.training, "the mode is restored"
    assert maps.keys() == {0, 1}
    for i, layer in enumerate(net.mechanisms()):
        assert isinstance(layer, Attention)
        x, mask = calls[i]
        out = layer.apply_weights(maps[i].materialize(), x, mask=mask)  # type: ignore[arg-type]
        torch.testing.assert_close(out, outputs[i], rtol=0, atol=1e-10)
    assert len(calls) == 2
    assert without_weights(net) == ""
    attention_maps(net, split.x, split.lengths)
    assert len(calls) == 4, "no hook is left"


def test_layers_without_weights_or_heads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("selfhead,multihead")
    data = task_data(net)
    assert without_heads(net) == "no separate heads, so these layers stay whole: layer 0 (SelfAttention)"
    assert [*layers_with_heads(net)] == [1]
    assert [tuple(mean.shape) for mean in mean_heads(net, data.train)] == [(0, 0), (4, 5)]
    without = replace(net.mechanisms()[0].card, supports=("causal", "arbitrary_mask"))
    monkeypatch.setattr(type(net.mechanisms()[0]), "card", without)
    assert without_weights(net) == "no attention weights: layer 0 (SelfAttention)"
    assert attention_maps(net, data.train.x).keys() == {1}
    with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
        layers_with_heads(network("selfhead"))
