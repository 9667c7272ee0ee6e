"""The kernels with strided inputs, and their second derivatives. Sizes are primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_match, randn
from torch import Tensor

from attnlab.ops.backends.sdpa import MIN_DROPOUT_WEIGHTS, Kernel
from attnlab.ops.softmax import SoftmaxMap, masked_softmax

B, H, N, d = 2, 3, 131, 5
assert H * N * N > MIN_DROPOUT_WEIGHTS


def inputs(length: int = N) -> list[Tensor]:
    return randn(*[(1, H, length, d)] * 3, (H,))


def strided(t: Tensor) -> Tensor:
    """The same tensor with a last stride other than 1."""
    return t.mT.contiguous().mT


@pytest.mark.parametrize("moved", ["q", "k", "v", "matrix", "all"])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_strided_inputs(moved: str, with_sink: bool, dropout: float) -> None:
    inputs = {name: torch.randn(B, H, N, d) for name in "qkv"} | {"matrix": torch.randn(1, H, N, N)}
    sink = torch.randn(H) if with_sink else None
    outs = []
    for change in (False, True):
        tensors = [strided(t) if change and moved in (name, "all") else t for name, t in inputs.items()]
        tensors = [t.detach().requires_grad_(i < 3) for i, t in enumerate(tensors)]
        torch.manual_seed(0)
        out = Kernel(0.3, sink, dropout)(*tensors)
        gradients = torch.autograd.grad((out * torch.randn(B, N, H, d).transpose(1, 2)).sum(), tensors[:3])
        outs.append([out, *gradients])
    torch.testing.assert_close(*reversed(outs))


def test_attention_map_takes_strided_values() -> None:
    q, k, v, sink = inputs()
    expected = masked_softmax(q @ k.mT / d**0.5, sink=sink) @ v
    torch.testing.assert_close(SoftmaxMap(q, k, sink=sink).apply(strided(v)), expected)


def test_both_implementations_of_a_sink_agree() -> None:
    q, k, v, sink = inputs(7)
    kernel, matrix = Kernel(0.3, sink), torch.randn(1, 1, 7, 7, dtype=torch.float64)
    for rule, triangle in ((None, False), (None, True), (matrix, False), (matrix > 0, False)):
        fused = kernel(q, k, v, rule, causal=triangle)
        assert_match(fused, kernel._with_a_key(q, k, v, sink, rule, triangle), [q, k, v, sink])


# Second derivatives; the conformance suite checks those of every mechanism.


@pytest.mark.parametrize("matrix", [None, "causal", "Boolean", "float"])
@pytest.mark.parametrize("kind", ["sink", "dropout"])
def test_second_derivatives_are_exact(kind: str, matrix: str | None) -> None:
    leaves = inputs()
    mask: Any = None
    if matrix in ("Boolean", "float"):
        mask = torch.rand(1, 1, N, N, generator=torch.Generator().manual_seed(1)) > 0.3
        mask[..., 2, :] = False
        mask = (
            mask if matrix == "Boolean" else torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        )

    def run(q: Tensor, k: Tensor, v: Tensor, *sink: Tensor) -> Tensor:
        torch.manual_seed(7)
        kernel = Kernel(0.4, *sink) if sink else Kernel(0.4, dropout=0.3)
        return kernel(q, k, v, mask, causal=matrix == "causal").tanh()

    assert torch.autograd.gradgradcheck(run, tuple(leaves if kind == "sink" else leaves[:3]), fast_mode=True)
