"""Softmax attention with dropout on its weights, on a CPU, without PyTorch's costly random numbers.

PyTorch draws a float for every weight; two bytes are enough to drop with a probability exact to 1/65536.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.ops.backends.eager import explicit_attention, explicit_gradients

GRID = 2**16

TOGETHER = 2**18
"""Weights of several batch items that are made together; more would leave the processor's cache."""


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None, dropout: float, scale: float) -> Tensor:
    """``dropout(softmax(scale · q kᵀ + matrix)) v``.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w).
        matrix: Boolean (True means attend) or added to the scores, broadcastable to (B, H, N, M); no gradient is given
            to it.
        dropout: the probability of dropping a weight; it is rounded to a multiple of 1/65536 below one.
        scale: what a score is multiplied by.

    Returns:
        (B, H, N, w); zeros in a fully masked row.

    Source: Srivastava et al. 2014, "Dropout", with the scaling at training time.
    """
    dropped = min(round(dropout * GRID), GRID - 1)
    if matrix is not None:
        matrix = matrix[(None,) * (4 - matrix.dim())]
    out: Tensor = _Dropout.apply(q, k, v, matrix, dropped, scale)[0]  # type: ignore[no-untyped-call]
    return out


class _Dropout(torch.autograd.Function):
    """A few items at a time, so that their weights stay in the cache; they are kept for the backward pass."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None, dropped: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, H, N, _), M, width = q.shape, k.shape[2], v.shape[3]
        out = q.new_empty(B, N, H, width).transpose(1, 2)
        weights, keep = q.new_empty(B, H, N, M), torch.empty(B, H, N, M, dtype=torch.bool)
        for items in _groups(B, H * N * M):
            scores = (q[items] @ k[items].mT).mul_(scale)
            forbidden = None
            if matrix is not None:
                added = matrix if len(matrix) == 1 else matrix[items]
                if added.dtype != torch.bool:
                    scores += added
                    added = added != -torch.inf
                forbidden = ~added
                scores.masked_fill_(forbidden, torch.finfo(scores.dtype).min)
            torch.softmax(scores, -1, out=weights[items])
            if forbidden is not None:
                weights[items].masked_fill_(forbidden, 0.0)
            random = torch.empty(-(-scores.numel() // 4), dtype=torch.int64).random_(-(2**63), 2**63 - 1)
            random = random.view(torch.int16)[: scores.numel()].view_as(scores)
            torch.ge(random, dropped - GRID // 2, out=keep[items])
            out[items] = (torch.mul(weights[items], keep[items], out=scores) @ v[items]).mul_(GRID / (GRID - dropped))
        return out, weights, keep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v, matrix, dropped, scale = inputs
        _, weights, keep = output
        ctx.mark_non_differentiable(weights, keep)
        ctx.save_for_backward(q, k, v, matrix, weights, keep)
        ctx.factor, ctx.scale = GRID / (GRID - dropped), scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, matrix, weights, keep = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for: the weights must depend on q and k again

            def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return explicit_attention(q, k, v, matrix, scale=ctx.scale, keep=keep.to(q.dtype) * ctx.factor)

            return (*explicit_gradients(compute, (q, k, v), gradient), None, None, None)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for items in _groups(len(q), weights[0].numel()):
            given = gradient[items] * ctx.factor
            kept = weights[items] * keep[items]
            dv[items] = kept.mT @ given
            flow = kept.mul_(given @ v[items].mT)
            # The softmax's own gradient: weights are tied to one in sum.
            flow -= weights[items] * flow.sum(-1, keepdim=True)
            flow *= ctx.scale
            dq[items], dk[items] = flow @ k[items], flow.mT @ q[items]
        return dq, dk, dv, None, None, None


def _groups(items: int, weights: int) -> list[slice]:
    """The batch items, as many together as `TOGETHER` allows."""
    size = max(1, TOGETHER // max(1, weights))
    return [slice(at, min(at + size, items)) for at in range(0, items, size)]
