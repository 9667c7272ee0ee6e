"""Softmax attention and its weights against the formula in float64; sizes are distinct primes."""

from __future__ import annotations

import pytest
import torch
from attention_cases import randn, reference_weights
from torch import Tensor

from attnlab.masks import Mask, causal, from_tensor, padding, prefix, sliding_window
from attnlab.ops.softmax import masked_softmax, softmax_attention, softmax_weights

B, H, N, M, d = 2, 3, 5, 7, 11
SHAPES = (B, H, N, d), (B, H, M, d), (B, H, M, d)
MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": causal(),
    "window": causal() & sliding_window(2),
    "padding": padding(torch.tensor([3, 7])),
    "fully masked rows": padding(torch.tensor([0, 7])) & ~prefix(0),
    "random": from_tensor(torch.rand(B, H, N, M, generator=torch.Generator().manual_seed(5)) > 0.6),
}


def biases() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"none": None, "matrix": (N, M), "heads": (H, 1, M), "all": (B, H, N, M)}
    return {
        n: None if s is None else torch.randn(s, dtype=torch.float64, generator=generator) for n, s in shapes.items()
    }


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("bias", biases().values(), ids=biases())
def test_attention_and_weights_match_the_formula(mask: Mask | None, bias: Tensor | None) -> None:
    q, k, v = randn(*SHAPES, grad=False)
    bound = None if mask is None else mask.bind(N, M, shape=(B, H))
    weights = reference_weights(q, k, mask, bias)
    torch.testing.assert_close(softmax_weights(q, k, bound, bias), weights)
    torch.testing.assert_close(softmax_attention(q, k, v, bound, bias), weights @ v)


def test_one_head_without_its_axis() -> None:
    q, k, v = (t[:, 0] for t in randn(*SHAPES, grad=False))
    bound = (causal() & padding(torch.tensor([3, 7]))).bind(N, M, shape=(B, 1))
    four = softmax_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), bound)
    torch.testing.assert_close(softmax_attention(q, k, v, bound), four.squeeze(1), rtol=0, atol=0)
    assert softmax_weights(q, k, bound).shape == (B, 1, N, M)


def test_plain_causal_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    q, _, _ = randn(*SHAPES, grad=False)
    bound = causal().bind(N, shape=(B, H))
    expected = softmax_attention(q, q, q, from_tensor(torch.ones(N, N).tril().bool()).bind(N, shape=(B, H)))
    monkeypatch.setattr(bound, "tensor", lambda: pytest.fail("the matrix was materialized"))
    torch.testing.assert_close(softmax_attention(q, q, q, bound), expected)


@pytest.mark.parametrize("bias", [None, torch.zeros(N, M, dtype=torch.float64)], ids=["no bias", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_fully_masked_row_has_a_finite_gradient(bias: Tensor | None, dropout: float) -> None:
    matrix = torch.ones(N, M, dtype=torch.bool)
    matrix[3] = False
    bound = from_tensor(matrix).bind(N, M, shape=(B, H))
    q, k, v = randn(*SHAPES)
    for out in (softmax_attention(q, k, v, bound, bias, dropout=dropout), softmax_weights(q, k, bound, bias)):
        assert not out[:, :, 3].any()
        assert out.isfinite().all()
        with torch.autograd.set_detect_anomaly(True):  # raises for a NaN in between too
            gradients = torch.autograd.grad(out.square().sum(), (q, k))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert not gradients[0][:, :, 3].any()


def test_infinite_biases_mask() -> None:
    q, k, v = randn(*SHAPES, grad=False)
    bias = torch.zeros(N, M, dtype=torch.float64)
    bias[1, 2:], bias[3] = -torch.inf, -torch.inf
    weights = softmax_weights(q.requires_grad_(), k, None, bias)
    torch.testing.assert_close(weights @ v, softmax_attention(q, k, v, None, bias))
    assert not weights[:, :, 3].any()
    (gradient,) = torch.autograd.grad(weights.square().sum(), q)
    assert gradient.isfinite().all()


def test_large_scores_do_not_overflow() -> None:
    scores = torch.tensor([[[[1e4, 0.0, -1e4]]]])
    torch.testing.assert_close(masked_softmax(scores), torch.tensor([[[[1.0, 0.0, 0.0]]]]))
    half = masked_softmax(scores.half().expand(1, 1, 3, 3), causal().bind(3))
    assert half.dtype == torch.float16
    assert torch.equal(half[0, 0, :, 0], torch.ones(3).half())
