"""Self-attention, one head: the numbers that one can check with a pencil, and PyTorch's own answer."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import causal, sliding_window
from attnlab.models.selfhead import SelfAttention

B, N, D = 2, 5, 11


def three_tokens() -> tuple[SelfAttention, Tensor]:
    """The example that all lessons share: weights in proportion 1 : 2 : 4, values 21, 42, 63.

    A token holds its place j, its value and a one: enough for plain projections to make q, k and v of it.
    """
    layer = SelfAttention(4).double()
    x = torch.tensor([[[j, 21.0 * (j + 1), 1.0, 0.0] for j in range(3)]], dtype=torch.float64)
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value, layer.output):
            part.weight.zero_()
            part.bias.zero_()
        layer.query.weight[0, 2] = 2 * math.log(2)
        layer.key.weight[0, 0] = 1.0
        layer.value.weight[0, 1] = 1.0
        layer.output.weight.copy_(torch.eye(4))
    return layer, x


@pytest.mark.parametrize(
    ("mask", "answers"),
    [
        (causal(), [21.0, 35.0, 51.0]),
        (None, [51.0, 51.0, 51.0]),
        (causal() & sliding_window(2), [21.0, 35.0, 56.0]),
        (~causal(), [56.0, 63.0, 0.0]),
    ],
)
def test_three_tokens_by_hand(mask: object, answers: list[float]) -> None:
    layer, x = three_tokens()
    assert layer(x, mask=mask)[0, :, 0].tolist() == pytest.approx(answers)
    assert layer.apply_weights(layer.attention_weights(x, mask=mask), x, mask=mask)[0, :, 0].tolist() == pytest.approx(
        answers
    )


def test_attention_weights_of_three_tokens() -> None:
    layer, x = three_tokens()
    torch.testing.assert_close(
        layer.attention_weights(x)[0, 0], torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64).expand(3, 3) / 7
    )


def test_parameters() -> None:
    assert sum(p.numel() for p in SelfAttention(D).parameters()) == 4 * D**2 + 4 * D


@pytest.mark.parametrize("is_causal", [False, True])
def test_it_equals_scaled_dot_product_attention(is_causal: bool) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(D, causal=is_causal).double(), torch.randn(B, N, D, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(layer.query(x), layer.key(x), layer.value(x), is_causal=is_causal)
    torch.testing.assert_close(layer(x), layer.output(expected))
    assert layer.attention_weights(x).shape == (B, 1, N, N)
    torch.testing.assert_close(layer.attention_weights(x).sum(-1), torch.ones(B, 1, N, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    layer, x = SelfAttention(D).to(dtype), torch.randn(B, N, D, dtype=dtype)
    assert layer(x).dtype == layer.attention_weights(x).dtype == dtype
