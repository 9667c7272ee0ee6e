"""A long scan a few chunks at a time, and its backward pass.

What a block makes on the way stays in the cache, and is not kept: the backward pass makes it anew from the block's
inputs and the state before it, as fused attention does with its map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.ops.scan.forms import Steps, chunked

BLOCK = {"cpu": 512}
"""Steps a block, by device: what a block makes should fit into a CPU's cache."""

LARGE_BLOCK = 4096
"""Steps a block where launches cost more than the cache gives."""


def blockwise(steps: Steps, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """`chunked`, block by block.

    Args:
        steps: N steps, at least one.
        state: (B, H, d, w), before the first.
        chunk: steps a chunk.

    Returns:
        The outputs, (B, H, N, w), laid out as (B, N, H, w): joining heads is then free; and the last state.
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
        for part, place in zip(steps.split(block), out.split(block, 2), strict=True):
            done, state = chunked(part, before[-1], chunk)
            place.copy_(done)
            before.append(state)
        ctx.save_for_backward(*steps, *before[:-1])
        ctx.sizes = chunk, block
        return out, state

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        (chunk, block), (q, k, v, log_decay, beta, *before) = ctx.sizes, ctx.saved_tensors
        steps, wanted, given = Steps(q, k, v, log_decay, beta), ctx.needs_input_grad[2:], (d_out, d_state)
        with torch.autocast(d_out.device.type, enabled=False):
            if torch.is_grad_enabled():  # the gradient shall have a gradient
                done = _differentiable(steps, before[0], chunk, block)
                sources = _chosen((before[0], *steps), wanted)
                found = torch.autograd.grad(done, sources, given, create_graph=True)
            else:
                found = _gradients(steps, before, wanted, *given, chunk, block)
        ready = iter(found)
        return None, None, *(next(ready) if want else None for want in wanted)


def _gradients(
    steps: Steps,
    before: list[Tensor],
    wanted: tuple[bool, ...],
    d_out: Tensor,
    d_state: Tensor,
    chunk: int,
    block: int,
) -> tuple[Tensor, ...]:
    """The gradients that are wanted of (state, *steps), from the last block to the first.

    Args:
        steps: N steps.
        before: the state before each block, (B, H, d, w).
        wanted: for the state and each of ``steps``.
        d_out: (B, H, N, w).
        d_state: (B, H, d, w), for the last state.
        chunk: steps a chunk.
        block: steps a block.
    """
    gradients = [torch.empty_like(x) for x in _chosen(steps, wanted[1:])]
    places = [gradient.split(block, 2) for gradient in gradients]
    blocks = list(enumerate(zip(steps.split(block), before, d_out.split(block, 2), strict=True)))
    for i, (part, state, given) in reversed(blocks):
        with torch.enable_grad():
            own, first = part.map(lambda x: x.detach().requires_grad_()), state.detach().requires_grad_()
            done = chunked(own, first, chunk)
        d_state, *found = torch.autograd.grad(done, [first, *_chosen(own, wanted[1:])], (given, d_state))
        for place, gradient in zip(places, found, strict=True):
            place[i].copy_(gradient)
    return (d_state, *gradients) if wanted[0] else tuple(gradients)


def _chosen(tensors: tuple[Tensor | None, ...], wanted: tuple[bool, ...]) -> list[Tensor]:
    return [x for x, want in zip(tensors, wanted, strict=True) if want and x is not None]


def _differentiable(steps: Steps, state: Tensor, chunk: int, block: int) -> tuple[Tensor, Tensor]:
    """The same by operations whose derivatives PyTorch knows, of any order."""
    outs = []
    for part in steps.split(block):
        out, state = chunked(part, state, chunk)
        outs.append(out)
    return torch.cat(outs, 2), state
