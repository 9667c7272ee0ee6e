"""Softmax attention with dropout of its weights on a CPU, with cheaper random numbers than PyTorch's dropout.

PyTorch draws a float for every weight; two bytes are enough for a probability exact to 1/65536.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.masks.bound import slices
from attnlab.ops.backends.eager import explicit_attention, explicit_gradients

GRID = 2**16

MAX_GROUP_WEIGHTS = 2**18
"""Weights of several batch items that are computed together; more would not fit into the processor's cache."""


def dropout_attention(q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None, dropout: float, scale: float) -> Tensor:
    """``dropout(softmax(scale · q kᵀ + matrix)) v``.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w).
        matrix: Boolean (True means attend) or added to the scores, broadcastable to (B, H, N, M); it gets no
            gradient.
        dropout: the probability of dropping a weight; it is rounded to a multiple of 1/65536 below one.
        scale: the factor of the scores.

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
    """Computes a few batch items at a time, whose weights fit into the cache, and saves the weights for backward."""

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
        if torch.is_grad_enabled():  # create_graph=True: the weights must depend on q and k

            def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return explicit_attention(q, k, v, matrix, scale=ctx.scale, keep=keep.to(q.dtype) * ctx.factor)

            return (*explicit_gradients(compute, (q, k, v), gradient), None, None, None)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for items in _groups(len(q), weights[0].numel()):
            d_out = gradient[items] * ctx.factor
            kept = weights[items] * keep[items]
            dv[items] = kept.mT @ d_out
            d_scores = kept.mul_(d_out @ v[items].mT)
            # The gradient of the softmax, whose weights sum to one.
            d_scores -= weights[items] * d_scores.sum(-1, keepdim=True)
            d_scores *= ctx.scale
            dq[items], dk[items] = d_scores @ k[items], d_scores.mT @ q[items]
        return dq, dk, dv, None, None, None


def _groups(items: int, weights: int) -> list[slice]:
    return slices(items, max(1, MAX_GROUP_WEIGHTS // max(1, weights)))
