"""The softmax engine against the formula in float64, cell by cell; sizes are distinct primes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from attnlab.masks import Mask, causal, from_tensor, padding, prefix, sliding_window
from attnlab.ops.softmax import masked_softmax, softmax_attention, softmax_weights

B, H, N, M, d = 2, 3, 5, 7, 11
MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": causal(),
    "window": causal() & sliding_window(2),
    "padding": padding(torch.tensor([3, 7])),
    "empty rows": padding(torch.tensor([0, 7])) & ~prefix(0),
    "drawn": from_tensor(torch.rand(B, H, N, M, generator=torch.Generator().manual_seed(5)) > 0.6),
}


def given(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, N, d), (B, H, M, d), (B, H, M, d))
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def biases() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"none": None, "matrix": (N, M), "heads": (H, 1, M), "all": (B, H, N, M)}
    return {
        n: None if s is None else torch.randn(s, dtype=torch.float64, generator=generator) for n, s in shapes.items()
    }


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The map and the answer, one number at a time."""
    permitted = torch.ones(B, H, N, M, dtype=torch.bool) if mask is None else mask.materialize(N, M).expand(B, H, N, M)
    added = torch.zeros(B, H, N, M, dtype=torch.float64) if bias is None else bias.expand(B, H, N, M)
    weights, out = torch.zeros(B, H, N, M, dtype=torch.float64), torch.zeros(B, H, N, d, dtype=torch.float64)
    for b, h, i in itertools.product(range(B), range(H), range(N)):
        seen = [j for j in range(M) if permitted[b, h, i, j]]
        powers = {j: math.exp(q[b, h, i] @ k[b, h, j] / math.sqrt(d) + added[b, h, i, j]) for j in seen}
        for j in seen:
            weights[b, h, i, j] = powers[j] / sum(powers.values())
            out[b, h, i] += weights[b, h, i, j] * v[b, h, j]
    return weights, out


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("bias", biases().values(), ids=biases())
def test_both_faces_are_the_formula(mask: Mask | None, bias: Tensor | None) -> None:
    q, k, v = given()
    bound = None if mask is None else mask.bind(N, M, shape=(B, H))
    weights, out = by_hand(q, k, v, mask, bias)
    torch.testing.assert_close(softmax_attention(q, k, v, bound, bias), out)
    torch.testing.assert_close(softmax_weights(q, k, bound, bias), weights)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_float32_stays_near_float64(mask: Mask | None) -> None:
    bound = None if mask is None else mask.bind(N, M, shape=(B, H))
    out = softmax_attention(*given(torch.float32), bound, biases()["all"])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), softmax_attention(*given(), bound, biases()["all"]), rtol=0, atol=2e-6)


def test_one_head_may_leave_its_axis_away() -> None:
    q, k, v = (t[:, 0] for t in given())
    bound = (causal() & padding(torch.tensor([3, 7]))).bind(N, M, shape=(B, 1))
    four = softmax_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), bound)
    torch.testing.assert_close(softmax_attention(q, k, v, bound), four.squeeze(1), rtol=0, atol=0)
    assert softmax_weights(q, k, bound).shape == (B, 1, N, M)


def test_plain_causal_needs_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    q, _, _ = given()
    bound = causal().bind(N, shape=(B, H))
    expected = softmax_attention(q, q, q, from_tensor(torch.ones(N, N).tril().bool()).bind(N, shape=(B, H)))
    monkeypatch.setattr(bound, "tensor", lambda: pytest.fail("a matrix was made"))
    torch.testing.assert_close(softmax_attention(q, q, q, bound), expected)


@pytest.mark.parametrize("bias", [None, torch.zeros(N, M, dtype=torch.float64)], ids=["no bias", "bias"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_empty_row_is_zero_with_a_finite_gradient(bias: Tensor | None, dropout: float) -> None:
    matrix = torch.ones(N, M, dtype=torch.bool)
    matrix[3] = False
    bound = from_tensor(matrix).bind(N, M, shape=(B, H))
    q, k, v = (t.requires_grad_() for t in given())
    for out in (softmax_attention(q, k, v, bound, bias, dropout=dropout), softmax_weights(q, k, bound, bias)):
        assert not out[:, :, 3].any()
        assert out.isfinite().all()
        with torch.autograd.set_detect_anomaly(True):  # stops at a NaN on the way too
            gradients = torch.autograd.grad(out.square().sum(), (q, k))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert not gradients[0][:, :, 3].any()


def test_the_faces_agree_where_the_scores_are_minus_infinity() -> None:
    q, k, v = given()
    bias = torch.zeros(N, M, dtype=torch.float64)
    bias[1, 2:], bias[3] = -torch.inf, -torch.inf
    weights = softmax_weights(q.requires_grad_(), k, None, bias)
    torch.testing.assert_close(weights @ v, softmax_attention(q, k, v, None, bias))
    assert not weights[:, :, 3].any()
    (gradient,) = torch.autograd.grad(weights.square().sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_gradients_of_both_faces_agree(mask: Mask | None) -> None:
    bound = None if mask is None else mask.bind(N, M, shape=(B, H))
    q, k, v = (t.requires_grad_() for t in given())
    bias = torch.randn(H, N, M, dtype=torch.float64, requires_grad=True)
    fused = torch.autograd.grad(softmax_attention(q, k, v, bound, bias).square().sum(), (q, k, v, bias))
    written = torch.autograd.grad((softmax_weights(q, k, bound, bias) @ v).square().sum(), (q, k, v, bias))
    torch.testing.assert_close(fused, written)


def test_large_scores_do_not_overflow() -> None:
    scores = torch.tensor([[[[1e4, 0.0, -1e4]]]])
    torch.testing.assert_close(masked_softmax(scores), torch.tensor([[[[1.0, 0.0, 0.0]]]]))
    half = masked_softmax(scores.half().expand(1, 1, 3, 3), causal().bind(3))
    assert half.dtype == torch.float16
    assert torch.equal(half[0, 0, :, 0], torch.ones(3).half())


def test_dropout_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = given()
    mean = torch.stack([softmax_attention(q, k, v, dropout=0.3) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, softmax_attention(q, k, v), rtol=0, atol=0.1)
