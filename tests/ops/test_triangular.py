"""The inverse of triangular matrices against a general inverse, with derivatives of both modes."""

from __future__ import annotations

import pytest
import torch

from attnlab.ops.scan.triangular import unit_lower_inverse


@pytest.mark.parametrize("size", [1, 5, 16, 17, 64, 130])
def test_it_is_the_inverse_below_the_diagonal(size: int) -> None:
    matrix = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    expected = torch.linalg.inv(torch.eye(size, dtype=torch.float64) + matrix.tril(-1))
    inverse = unit_lower_inverse(matrix)
    assert ((inverse - expected).abs() <= 1e-12 * expected.abs().amax((-2, -1), keepdim=True)).all()
    assert inverse.is_contiguous()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # gradcheck in forward mode
@pytest.mark.parametrize("size", [5, 19])
def test_derivatives(size: int) -> None:
    matrix = torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    matrix.requires_grad_()
    torch.autograd.gradcheck(unit_lower_inverse, matrix, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(unit_lower_inverse, matrix, fast_mode=True)


def test_correlated_keys_lose_no_precision() -> None:
    """Equal keys with a strength of 2, the limit of stability: the powers of the matrix would overflow."""
    matrix = torch.full((64, 64), 2.0)
    expected = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + matrix.double().tril(-1))
    assert (unit_lower_inverse(matrix) - expected).abs().max() < 1e-5
