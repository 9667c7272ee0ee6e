"""MesaNet: the worked example, the regression in closed form, the number of steps, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab.models.mesa import MesaNet
from attnlab.models.mesa.reference import reference

B, N, H, d = 2, 11, 3, 5


def made(**options: Any) -> MesaNet:
    torch.manual_seed(0)
    return perturbed(MesaNet(H * d, H, **options))


@pytest.mark.parametrize(
    ("penalty", "decay", "expected"),
    [(1.0, -40, [10.5, 10.5, 28]), (3.0, -40, [5.25, 5.25, 16.8]), (1.0, math.log(2), [10.5, 5.25, 30])],
)
def test_the_worked_example(penalty: float, decay: float, expected: list[float]) -> None:
    layer = MesaNet(5, 1, short_conv=0, output_norm=False).double()
    x = torch.tensor([[[1, 0, 21, -40, 40], [0, 1, 42, decay, 40], [1, 0, 63, -40, 40]]]).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.ridge.fill_(math.log(math.expm1(penalty - 0.25)))
        W_Q, W_K, W_V = layer.qkv.weight.chunk(3)
        W_Q[0, :2] = W_K[0, 0] = W_K[1, 1] = 100
        W_V[0, 2] = layer.step.weight[0, 3] = layer.strength.weight[0, 4] = layer.output.weight[0, 0] = 1
        assert layer(x)[0, :, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_weights_solve_the_weighted_regression() -> None:
    """The gradient of the loss that the matrix of the paper minimizes is zero at the last token."""
    layer, x = made(short_conv=0), random(1, N, H * d)
    with torch.no_grad():
        inputs, _ = super(MesaNet, layer)._project(x, _whole(), ())
        assert inputs.beta is not None
        assert inputs.log_decay is not None
        later = inputs.log_decay.flip(-1).cumsum(-1).flip(-1) - inputs.log_decay  # after each token
        zeta = (inputs.beta * later.exp()).unsqueeze(-1)  # (1, H, N, 1)
        left = (zeta * inputs.k).mT @ inputs.k + torch.diag_embed(layer.regularization())
        W = torch.linalg.solve(left, (zeta * inputs.k).mT @ inputs.v)  # (1, H, d, d)
        read = (inputs.q[:, :, -1:] @ W).squeeze(2)
        weights = layer.attention_weights(x)[:, :, -1]
    assert_same(torch.einsum("bhn,bhnd->bhd", weights, inputs.v), read)


def _whole() -> Any:
    from attnlab.ops.scan import Sequences

    return Sequences(None, N)


def test_the_solution_is_exact_after_as_many_steps_as_a_head_is_wide() -> None:
    x = random(B, N, H * d)
    errors = [(made(iterations=n)(x) - reference(made(), x)).abs().max().item() for n in (1, 3, d, 40)]
    assert errors[0] > errors[1] > 1e-5
    assert errors[2] < 1e-10
    assert errors[3] < 1e-10


def test_a_query_of_zeros_reads_zero_with_finite_gradients() -> None:
    layer, x = made(short_conv=0, output_norm=False), torch.zeros(1, 3, H * d, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert not out.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_penalty_starts_at_one_and_stays_above_a_quarter() -> None:
    layer = MesaNet(H * d, H).double()
    assert_same(layer.regularization(), torch.ones(H, d).double(), 1e-6)
    with torch.no_grad():
        layer.ridge.fill_(-1000.0)
    assert_same(layer.regularization(), torch.full((H, d), 0.25).double())


def test_fewer_than_one_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="iterations"):
        MesaNet(H * d, H, iterations=0)
