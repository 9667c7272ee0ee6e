"""Linear attention: the worked example, a loop over states, documents, and rows without features.

What it shares with other recurrences is tested in tests/models/test_recurrences.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import CAUSAL, assert_same, random, random_biases
from torch import Tensor

from attnlab import masks
from attnlab.models.linear import LinearAttention
from attnlab.models.linear.reference import reference
from attnlab.ops.scan import NormalizedScan

B, N, H, D, d = 2, 11, 3, 15, 5
FEATURES = pytest.mark.parametrize("feature_map", ["elu", "relu", "softmax"])


def made(**options: Any) -> LinearAttention:
    torch.manual_seed(0)
    return random_biases(LinearAttention(D, H, **options).double().eval())


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def three_tokens(causal: bool) -> Tensor:
    """The worked example: φ(q) = 1, φ(k) = 1, 2, 4, and the values 21, 42, 63."""
    layer = LinearAttention(4, 4, causal=causal, bias=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.qkv.weight[4, 0] = layer.qkv.weight[8, 1] = layer.output.weight[0, 0] = 1
        return layer(torch.tensor([[[0.0, 21, 0, 0], [1, 42, 0, 0], [3, 63, 0, 0]]]))[0, :, 0]


def test_the_worked_example() -> None:
    assert three_tokens(causal=True).tolist() == pytest.approx([21, 35, 51])
    assert three_tokens(causal=False).tolist() == pytest.approx([51, 51, 51])


@FEATURES
@CAUSAL
def test_a_loop_over_states(feature_map: str, causal: bool) -> None:
    layer, x = made(feature_map=feature_map, causal=causal), tokens()
    phi = {"elu": lambda t: torch.nn.functional.elu(t) + 1, "relu": torch.relu, "softmax": lambda t: t.softmax(-1)}
    out = torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            q, k, v = (part[b].split(d, -1)[h] for part in layer.qkv(x).chunk(3, -1))
            q, k = phi[feature_map](q), phi[feature_map](k)
            state, total = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
            states = []
            for j in range(N):
                state, total = state + torch.outer(k[j], v[j]), total + k[j]
                states.append((state, total))
            for i in range(N):
                S, z = states[i] if causal else states[-1]
                below = q[i] @ z
                out[b, i, h * d : h * d + d] = q[i] @ S / below if below else 0
    assert_same(layer(x), layer.output(out))


IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 0, 0, 2, 2, 1], [5, 5, 5, 3, 3, 3, 3, 9, 9, 9, 5]])
DOCUMENTS = {
    "interleaved": masks.documents(IDS),  # a document may be interrupted by another: its tokens are one sequence
    "padded": masks.documents(IDS) & masks.padding(torch.tensor([N, N - 3])),
    "two masks": masks.documents(torch.arange(N) // 4) & masks.documents(torch.arange(N) // 3),
}


@CAUSAL
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str, causal: bool) -> None:
    layer, x, mask = made(causal=causal), tokens(), DOCUMENTS[name]
    allowed = (mask & masks.causal() if causal else mask).materialize(N).expand(B, H, N, N)
    assert_same(layer(x, mask=mask), reference(layer, x, allowed))
    assert_same(layer.apply_weights(layer.attention_weights(x, mask=mask), x, mask=mask), layer(x, mask=mask))


def test_rows_without_features_are_zero() -> None:
    layer, x = made(feature_map="relu"), tokens()
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.bias.fill_(-1.0)
    assert_same(layer(x), layer.output.bias.expand(B, N, D))
    layer(x.requires_grad_()).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_other_numbers_of_queries_than_keys_are_refused_under_documents() -> None:
    q, k = torch.rand(2, 1, 1, 7, 3).unbind(0)
    mask = masks.documents(torch.zeros(7, dtype=torch.long)).bind(5, 7)
    with pytest.raises(ValueError, match="as many queries as keys in linear attention, not 5 and 7"):
        NormalizedScan(q[:, :, :5], k, mask)
