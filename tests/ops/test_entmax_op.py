"""α-entmax: its threshold, exact zeros, derivatives, precision and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab.ops import entmax as ops
from attnlab.ops.entmax import entmax

ALPHAS = [1 + 1e-9, 1.000001, 1.0001, 1.01, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0]


def bisection(scores: Tensor, alpha: float) -> Tensor:
    """The weights in float64, by 80 halvings of the interval that holds the threshold."""
    scores = scores.double() - scores.double().amax(-1, keepdim=True)
    low, high = torch.zeros_like(scores[..., :1]), torch.full_like(scores[..., :1], math.log(scores.shape[-1]))
    for _ in range(80):
        middle = (low + high) / 2
        weights = (((alpha - 1) * (scores - middle)).clamp(min=-1).log1p() / (alpha - 1)).exp()
        above = weights.sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return weights / weights.sum(-1, keepdim=True)


def rows_of(M: int) -> Iterator[Tensor]:
    """Scores that need few and many steps: normal of all sizes, heavy tails, equal, geometric and power laws."""
    generator = torch.Generator().manual_seed(M)
    normal = torch.randn(5, M, generator=generator, dtype=torch.float64)
    yield from (scale * normal for scale in (0.0, 0.1, 0.5, 1.0, 3.0, 10.0))
    yield normal / normal.flip(0, 1)
    line = torch.arange(M, dtype=torch.float64) / M
    yield torch.stack(
        [-(2.0 ** -(M * line).clamp(max=60)), -1 / (1 + M * line), -(1 + M * line).log(), -line, -(line**2)]
    )
    yield torch.stack([-(line**0.25) * 2, -((-line).exp())])


@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 1.75, 2.0])
@pytest.mark.parametrize("M", [1, 2, 17, 64, 79, 1031, 8191])
def test_newton_finds_the_threshold(alpha: float, M: int) -> None:
    for scores in rows_of(M):
        scores, expected = scores.float(), bisection(scores.float(), alpha)
        torch.testing.assert_close(entmax(scores.double(), alpha), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(entmax(scores, alpha).double(), expected, rtol=0, atol=2e-6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "can_inspect_values", lambda x: False)  # the number of steps is that of a traced graph
            torch.testing.assert_close(entmax(scores, alpha).double(), expected, rtol=0, atol=3e-6)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=9), st.floats(1.05, 4), st.floats(-9, 9))
def test_weights_sum_to_one_in_the_order_of_the_scores(scores: list[float], alpha: float, shift: float) -> None:
    drawn = torch.tensor(scores, dtype=torch.float64)
    weights = entmax(drawn, alpha)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    assert (weights[drawn.argsort()].diff() >= 0).all()
    torch.testing.assert_close(entmax(drawn + shift, alpha), weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 0.004), (torch.float16, 5e-4), (torch.float64, 1e-14)]
)
def test_weights_and_gradients_match_float64(alpha: float, dtype: torch.dtype, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.randn(17, 257, generator=generator)).to(dtype).requires_grad_()
    weights, expected = entmax(scores, alpha), bisection(scores.detach(), alpha)
    assert (weights.double() - expected).abs().max() < limit
    direction = torch.randn(17, 257, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights.double() * direction).sum(), scores)
    slope = torch.where(expected > 0, expected ** (2 - alpha), 0.0)
    true = slope * (direction - (slope * direction).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))
    # Above 2 the slope is unbounded where a weight begins, so the rounding of one score matters.
    assert (gradient.double() - true).norm() < (4 if alpha <= 2 else 4000) * limit * true.norm()


@pytest.mark.parametrize("excess", [1e-9, 1e-12, 2.3e-16])
def test_the_limit_is_softmax(excess: float) -> None:
    scores = torch.randn(17, 257, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entmax(scores, 1 + excess), scores.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # raised by PyTorch in forward-mode AD
@pytest.mark.parametrize("alpha", [1.000001, 1.25, 1.5, 2.0, 2.5, 4.0])
def test_second_derivatives_are_exact(alpha: float) -> None:
    scores = torch.tensor([[0.3, -0.2, 0.1], [9.0, 0.2, 8.9]], dtype=torch.float64, requires_grad=True)
    assert alpha < 1.2 or (entmax(scores, alpha)[1, 1] == 0).all()
    assert torch.autograd.gradgradcheck(lambda s: entmax(s, alpha).tanh(), scores)
    assert torch.autograd.gradcheck(lambda s: entmax(s, alpha), scores, check_forward_ad=True)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 4.0])
def test_a_lead_of_one_over_alpha_minus_one_takes_all_attention(alpha: float) -> None:
    lead = 1 / (alpha - 1)
    assert entmax(torch.tensor([0.0, lead + 1e-6, 0.0], dtype=torch.float64), alpha).tolist() == [0, 1, 0]
    assert (entmax(torch.tensor([0.0, 0.9 * lead], dtype=torch.float64), alpha) > 0).all()


def test_a_zero_weight_has_no_gradient() -> None:
    scores = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    weights = entmax(scores, 1.5)
    assert weights.tolist() == [0, 0, 1]
    weights[1].backward()
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("alpha", [1.000001, 1.25, 1.5, 1.75, 2.0, 3.0])
@pytest.mark.parametrize("M", [7, 131])
def test_fully_masked_rows_are_zero_and_do_not_change_others(alpha: float, M: int) -> None:
    scores = torch.randn(3, M, generator=torch.Generator().manual_seed(0), requires_grad=True)
    permitted = torch.ones(3, M, dtype=torch.bool)
    permitted[1], permitted[2, 1:] = False, False
    weights = entmax(scores, alpha, permitted)
    (gradient,) = torch.autograd.grad((weights * weights.detach().cos()).sum(), scores)
    assert not weights[1].any()
    assert not gradient[1].any()
    assert weights[2].tolist() == [1.0] + [0.0] * (M - 1)
    torch.testing.assert_close(weights[0], entmax(scores[0], alpha))
    assert gradient.isfinite().all()
