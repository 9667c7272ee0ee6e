"""Random tensors and a reference of softmax attention, for the tests of the backends."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnlab.masks import Mask


def randn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
    """Leaves of these shapes, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]
    return [t.requires_grad_(grad) for t in drawn]


def reference_weights(
    q: Tensor,
    k: Tensor,
    mask: Mask | None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The formula of the weights: exponentials of the scores, divided by their sum and that of the sink."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    exponentials = (scores if bias is None else scores + bias).exp()
    if mask is not None:
        exponentials = exponentials * mask.materialize(q.shape[2], k.shape[2])
    total = exponentials.sum(-1, keepdim=True)
    total = total if sink is None else total + sink.exp()[:, None, None]
    return exponentials / total.clamp(min=1e-300)


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, bias: Tensor | None = None, **options: Any) -> Tensor:
    """The output of attention; shared values are repeated for each query head."""
    return reference_weights(q, k, mask, bias, **options) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


def assert_match(out: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare outputs and the gradients of a nonlinear loss."""
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(o.square().sum(), inputs, retain_graph=True) for o in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
