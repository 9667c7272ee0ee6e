"""Self-attention, one head: the numbers of the worked example."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same

from attnlab.masks import causal, sliding_window
from attnlab.models.selfhead import SelfAttention


@pytest.mark.parametrize(
    ("mask", "weights", "outputs"),
    [
        (causal(), [[1, 0, 0], [1, 2, 0], [1, 2, 4]], [21.0, 35.0, 51.0]),
        (None, [[1, 2, 4]] * 3, [51.0, 51.0, 51.0]),
        (causal() & sliding_window(2), [[1, 0, 0], [1, 2, 0], [0, 2, 4]], [21.0, 35.0, 56.0]),
        (~causal(), [[0, 2, 4], [0, 0, 4], [0, 0, 0]], [56.0, 63.0, 0.0]),
    ],
)
def test_three_tokens_by_hand(mask: Any, weights: list[list[float]], outputs: list[float]) -> None:
    """A token holds its position j, its value 21 (j + 1) and a one, from which projections make q, k and v."""
    layer = SelfAttention(4).double()
    x = torch.tensor([[[j, 21.0 * (j + 1), 1.0, 0.0] for j in range(3)]], dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.query.weight[0, 2] = 2 * math.log(2)
        layer.key.weight[0, 0] = layer.value.weight[0, 1] = 1.0
        layer.output.weight.copy_(torch.eye(4))
    proportions = torch.tensor(weights, dtype=torch.float64)
    expected = proportions / proportions.sum(-1, keepdim=True).clamp(min=1)
    assert_same(layer.attention_weights(x, mask=mask)[0, 0], expected)
    assert layer(x, mask=mask)[0, :, 0].tolist() == pytest.approx(outputs)
    assert layer.apply_weights(expected[None, None], x, mask=mask)[0, :, 0].tolist() == pytest.approx(outputs)
