"""Softmax attention with dropout on its weights, on a CPU, without PyTorch's costly random numbers.

PyTorch draws a float for every weight; two bytes are enough to drop with a probability exact to 1/65536.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.engines.tiles import of_items

GRID = 2**16


def dropout_attention(
    q: Tensor, k: Tensor, v: Tensor, permitted: Tensor | None, bias: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """``dropout(softmax(scale · q kᵀ + bias)) v`` over the permitted keys.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w).
        permitted: Boolean, four axes, broadcastable to (B, H, N, M).
        bias: four axes, broadcastable to (B, H, N, M); no gradient is given to it.
        dropout: the probability of dropping a weight; it is rounded to a multiple of 1/65536 below one.
        scale: what a score is multiplied by.

    Returns:
        (B, H, N, w); zeros in a row that may look at nothing.

    Source: Srivastava et al. 2014, "Dropout", with the scaling at training time.
    """
    dropped = min(round(dropout * GRID), GRID - 1)
    out: Tensor = _Dropout.apply(q, k, v, permitted, bias, dropped, scale)[0]  # type: ignore[no-untyped-call]
    return out


class _Dropout(torch.autograd.Function):
    """An item at a time, so that its map stays in the cache; what the backward pass needs is written down once."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        permitted: Tensor | None,
        bias: Tensor | None,
        dropped: int,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, H, N, _), M, width = q.shape, k.shape[2], v.shape[3]
        out = q.new_empty(B, N, H, width).transpose(1, 2)
        weights, keep = q.new_empty(B, H, N, M), torch.empty(B, H, N, M, dtype=torch.bool)
        random = torch.empty(-(-H * N * M // 4), dtype=torch.int64)
        mixed = q.new_empty(H, N, width)
        for b in range(B):
            item = slice(b, b + 1)
            scores = (q[b] @ k[b].mT).mul_(scale)
            if bias is not None:
                scores += of_items(bias, item)[0]
            if permitted is not None:
                forbidden = ~of_items(permitted, item)[0]
                scores.masked_fill_(forbidden, torch.finfo(scores.dtype).min)
            torch.softmax(scores, -1, out=weights[b])
            if permitted is not None:
                weights[b].masked_fill_(forbidden, 0.0)
            random.random_(-(2**63), 2**63 - 1)
            torch.ge(random.view(torch.int16)[: H * N * M].view(H, N, M), dropped - GRID // 2, out=keep[b])
            torch.matmul(torch.mul(weights[b], keep[b], out=scores), v[b], out=mixed)
            out[b] = mixed.mul_(GRID / (GRID - dropped))
        return out, weights, keep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v, _, _, dropped, scale = inputs
        _, weights, keep = output
        ctx.mark_non_differentiable(weights, keep)
        ctx.save_for_backward(q, k, v, weights, keep)
        ctx.factor, ctx.scale = GRID / (GRID - dropped), scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, keep = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for b in range(len(q)):
            given = gradient[b] * ctx.factor
            kept = weights[b] * keep[b]
            dv[b] = kept.mT @ given
            flow = kept.mul_(given @ v[b].mT)
            # The softmax's own gradient: weights are tied to one in sum.
            flow -= weights[b] * flow.sum(-1, keepdim=True)
            flow *= ctx.scale
            dq[b], dk[b] = flow @ k[b], flow.mT @ q[b]
        return dq, dk, dv, None, None, None, None
