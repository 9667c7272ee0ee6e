"""The causal convolution against its formula, in blocks of any length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnlab.ops import convolution
from attnlab.ops.convolution import causal_convolution

B, C, S = 2, 5, 4


def by_hand(x: Tensor, weight: Tensor) -> Tensor:
    rows = [sum(weight[:, j] * x[:, t - j] for j in range(min(S, t + 1))) for t in range(x.shape[1])]
    return torch.stack(rows, 1)


@pytest.fixture(params=[1, 3 * B * C, 2**17], ids=["one token", "three tokens", "all"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "BLOCK", request.param)


def case(N: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(B, N, C, generator=generator), torch.randn(C, S, generator=generator)
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("N", [1, 2, 3, 11])
def test_outputs_and_gradients(N: int) -> None:
    inputs = case(N)
    out, expected = causal_convolution(*inputs), by_hand(*inputs)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, inputs, upstream) for y in (out, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # raised by PyTorch's own forward_ad
@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("N", [2, 7])
def test_derivatives_of_any_kind(N: int) -> None:
    inputs = case(N)
    assert torch.autograd.gradcheck(causal_convolution, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(causal_convolution, inputs)


def test_gradients_of_the_weight_are_summed_in_float32() -> None:
    x, weight = case(4096, torch.bfloat16)
    ours, expected = (
        torch.autograd.grad(f(a, w).sum(), w)[0]
        for f, a, w in ((causal_convolution, x.detach(), weight), (by_hand, x.detach().double(), weight.double()))
    )
    torch.testing.assert_close(ours.double(), expected, rtol=2**-8, atol=0)


def test_a_view_of_wider_tokens() -> None:
    wide = torch.randn(B, 11, 3 * C, dtype=torch.float64)
    _, weight = case(1)
    torch.testing.assert_close(causal_convolution(wide[..., C : 2 * C], weight), by_hand(wide[..., C : 2 * C], weight))


def test_empty() -> None:
    assert causal_convolution(torch.empty(B, 0, C), torch.empty(C, S)).shape == (B, 0, C)
    assert causal_convolution(torch.empty(0, 7, C), torch.empty(C, S)).shape == (0, 7, C)
