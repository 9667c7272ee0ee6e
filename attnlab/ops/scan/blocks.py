"""A long scan, a few chunks at a time.

The intermediate tensors of a block fit into the cache and are not kept: the backward pass computes them again from the
inputs of the block and the state before it, as fused attention computes its weights again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attnlab.ops.scan.forms import Steps, chunked
from attnlab.utils.tracing import full_precision

CHUNKS = {"cpu": 8}
"""Chunks per block, by device: its intermediate tensors should fit into the cache of a CPU."""

MANY_CHUNKS = 64
"""Chunks per block on other devices, where kernel launches cost more than the cache saves."""


def blockwise(steps: Steps, state: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute `chunked` block by block, for at least one step."""
    block = CHUNKS.get(steps.q.device.type, MANY_CHUNKS) * chunk
    if steps.q.shape[2] <= block:
        return chunked(steps, state, chunk)
    outs = []
    for part in steps.split(block):
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:  # forward derivatives
            out, state = chunked(part, state, chunk)
        else:
            out, state = _Block.apply(chunk, state, *part)  # type: ignore[no-untyped-call]
        outs.append(out)
    return joined(outs), state


def joined(outs: list[Tensor]) -> Tensor:
    """Concatenate the outputs of some steps, laid out as (B, N, H, w): merging the heads is then free."""
    return torch.cat([out.transpose(1, 2) for out in outs], 1).transpose(1, 2)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunk: int, state: Tensor, *steps: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(state, *steps)
        ctx.chunk = chunk
        return chunked(Steps(*steps), state, chunk)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed, again = ctx.saved_tensors, ctx.needs_input_grad[1:], torch.is_grad_enabled()
        if not again:  # with create_graph=True, the gradients depend on the history of the inputs
            inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad(), full_precision(gradients[0].device):
            outputs = chunked(Steps(*inputs[1:]), inputs[0], ctx.chunk)
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=again))
        return None, *(next(found) if need else None for need in needed)
