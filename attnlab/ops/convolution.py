"""The causal convolution of each channel along the tokens, in blocks of tokens.

Axes: B batch, N tokens, C channels, S taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.ops.rowwise import at_least_float32

BLOCK = 2**17
"""Elements per block on a CPU: it stays in the cache."""


def causal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """``y_t = Σ_{j < S} w_j ⊙ x_{t-j}``, with zeros before the first token; not inside a trace or a transform.

    Args:
        x: (B, N, C).
        weight: (C, S), in the dtype of ``x``.
    """
    out: Tensor = _Convolution.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


class _Convolution(torch.autograd.Function):
    """In place: allocating one tensor per tap costs several times as much as the arithmetic."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        out, taps = torch.empty_like(x), weight.mT.contiguous()
        for start, end in _blocks(x):
            torch.mul(x[:, start:end], taps[0], out=out[:, start:end])
            for j in range(1, min(len(taps), end)):
                first = max(start, j)
                out[:, first:end].addcmul_(x[:, first - j : end - j], taps[j])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        N, S = x.shape[1], weight.shape[1]
        batched = torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(gradient)
        if batched or torch.is_grad_enabled():  # is_grads_batched=True, create_graph=True: the same sums, not in place
            padded = F.pad(gradient, (0, 0, 0, S - 1))
            parts = [padded.narrow(1, j, N) for j in range(S)]
            terms = [part * weight[:, j] for j, part in enumerate(parts)]
            return sum(terms[1:], terms[0]), torch.stack([(part * x).sum((0, 1)) for part in parts], 1)
        for_x, taps = torch.empty_like(x), weight.mT.contiguous()
        for_taps = torch.zeros_like(at_least_float32(taps))
        for start, end in _blocks(x):
            torch.mul(gradient[:, start:end], taps[0], out=for_x[:, start:end])
            for j in range(min(S, N - start)):
                last = min(end, N - j)
                later = gradient[:, start + j : last + j]
                if j:
                    for_x[:, start:last].addcmul_(later, taps[j])
                for_taps[j] += (later * x[:, start:last]).sum((0, 1), dtype=for_taps.dtype)
        return for_x, for_taps.mT.to(weight.dtype)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = [] if x_tangent is None else [causal_convolution(x_tangent, weight)]
        parts += [] if weight_tangent is None else [causal_convolution(x, weight_tangent)]
        return sum(parts[1:], parts[0])


def _blocks(x: Tensor) -> Iterator[tuple[int, int]]:
    B, N, C = x.shape
    rows = max(BLOCK // max(B * C, 1), 1) if x.is_cpu else max(N, 1)
    return ((start, min(start + rows, N)) for start in range(0, N, rows))
