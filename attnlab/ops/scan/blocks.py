"""A long scan, a few chunks at a time, and its backward pass.

The intermediate tensors of a block fit into the cache and are not kept: the backward pass recomputes them from the
inputs of the block and the state before it, as fused attention recomputes its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.ops.scan.forms import Steps, chunked

BLOCK = {"cpu": 512}
"""Steps per block, by device: its intermediate tensors should fit into the cache of a CPU."""

LARGE_BLOCK = 4096
"""Steps per block on other devices, where kernel launches cost more than the cache saves."""


def blockwise(steps: Steps, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute `chunked` block by block.

    Args:
        steps: N steps, at least one.
        state: (B, H, d, w), before the first step.
        chunk: the number of steps per chunk.

    Returns:
        The outputs, (B, H, N, w), laid out as (B, N, H, w), with which merging the heads is free; and the last state.
    """
    block = max(BLOCK.get(steps.q.device.type, LARGE_BLOCK) // chunk, 1) * chunk
    if steps.q.shape[2] <= block:
        return chunked(steps, state, chunk)
    if torch._C._are_functorch_transforms_active():
        return _differentiable(steps, state, chunk, block)
    out, state = _Blockwise.apply(chunk, block, state, *steps)  # type: ignore[no-untyped-call]
    return out, state


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chunk: int,
        block: int,
        state: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        beta: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps, before = Steps(q, k, v, log_decay, beta), [state]
        out = torch.empty_like(v.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for part, target in zip(steps.split(block), out.split(block, 2), strict=True):
            result, state = chunked(part, before[-1], chunk)
            target.copy_(result)
            before.append(state)
        ctx.save_for_backward(*steps, *before[:-1])
        ctx.sizes = chunk, block
        return out, state

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        (chunk, block), (q, k, v, log_decay, beta, *before) = ctx.sizes, ctx.saved_tensors
        steps, needed = Steps(q, k, v, log_decay, beta), ctx.needs_input_grad[2:]
        with torch.autocast(d_out.device.type, enabled=False):
            if torch.is_grad_enabled():  # create_graph=True
                outputs = _differentiable(steps, before[0], chunk, block)
                inputs = _select((before[0], *steps), needed)
                gradients = torch.autograd.grad(outputs, inputs, (d_out, d_state), create_graph=True)
            else:
                gradients = _gradients(steps, before, needed, d_out, d_state, chunk, block)
        remaining = iter(gradients)
        return None, None, *(next(remaining) if need else None for need in needed)


def _gradients(
    steps: Steps,
    before: list[Tensor],
    needed: tuple[bool, ...],
    d_out: Tensor,
    d_state: Tensor,
    chunk: int,
    block: int,
) -> tuple[Tensor, ...]:
    """Return the gradients that are needed of (state, *steps), computed from the last block to the first.

    Args:
        steps: N steps.
        before: the state before each block, (B, H, d, w).
        needed: whether the state and each tensor of ``steps`` need a gradient.
        d_out: (B, H, N, w).
        d_state: (B, H, d, w), for the last state.
        chunk: the number of steps per chunk.
        block: the number of steps per block.
    """
    gradients = [torch.empty_like(x) for x in _select(steps, needed[1:])]
    targets = [gradient.split(block, 2) for gradient in gradients]
    blocks = list(enumerate(zip(steps.split(block), before, d_out.split(block, 2), strict=True)))
    for i, (part, state, d_part) in reversed(blocks):
        with torch.enable_grad():
            leaves, first = part.map(lambda x: x.detach().requires_grad_()), state.detach().requires_grad_()
            outputs = chunked(leaves, first, chunk)
        inputs = [first, *_select(leaves, needed[1:])]
        d_state, *d_inputs = torch.autograd.grad(outputs, inputs, (d_part, d_state))
        for target, gradient in zip(targets, d_inputs, strict=True):
            target[i].copy_(gradient)
    return (d_state, *gradients) if needed[0] else tuple(gradients)


def _select(tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> list[Tensor]:
    return [x for x, need in zip(tensors, needed, strict=True) if need and x is not None]


def _differentiable(steps: Steps, state: Tensor, chunk: int, block: int) -> tuple[Tensor, Tensor]:
    """Compute the blocks in differentiable operations, for derivatives of any order."""
    outs = []
    for part in steps.split(block):
        out, state = chunked(part, state, chunk)
        outs.append(out)
    return torch.cat(outs, 2), state
