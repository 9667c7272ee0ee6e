"""The card of a mechanism states the sign of its attention weights."""

from __future__ import annotations

import pytest
import torch
from mechanisms import supporting

from attnlab.catalog import registry
from attnlab.nn.cache import RecurrentState


@pytest.mark.parametrize("name", supporting("weights"))
def test_attention_weights_have_the_kind_that_the_card_states(name: str) -> None:
    mechanism = registry.load(name)
    torch.manual_seed(0)
    layer = mechanism(16).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    weights = layer.attention_weights(3 * torch.randn(2, 67, 16, dtype=torch.float64))
    sums = weights.sum(-1)
    kind = "probabilities" if torch.allclose(sums, torch.ones_like(sums)) else "non-negative"
    assert mechanism.card.weights == (kind if weights.min() >= 0 else "signed")


@pytest.mark.parametrize("name", supporting("cache"))
def test_the_card_states_what_decoding_keeps(name: str) -> None:
    mechanism = registry.load(name)
    assert mechanism.card.constant_state == (mechanism.cache_type is RecurrentState)
