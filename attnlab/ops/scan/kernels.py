"""The Triton kernels of flash-linear-attention, where they can run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KERNELS = {
    "linear_attention": ("fla.ops.linear_attn", "chunk_linear_attn"),
    "retention": ("fla.ops.retention", "chunk_retention"),
    "simple_gla": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "gla": ("fla.ops.gla", "chunk_gla"),
    "delta_rule": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta_rule": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "kda": ("fla.ops.kda", "chunk_kda"),
    "rwkv7": ("fla.ops.rwkv7", "chunk_rwkv7"),
}
"""The module and the function of each recurrence."""


@cache
def _installed() -> bool:
    return find_spec("fla") is not None and find_spec("triton") is not None


def applies(*inputs: Tensor) -> bool:
    """Whether the kernels take these tensors: on CUDA, in float32 or less, outside of a trace."""
    return (
        inputs[0].is_cuda
        and all(x.dtype != torch.float64 for x in inputs)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _installed()
    )


def run(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    gates: dict[str, Tensor],
) -> tuple[Tensor, Tensor | None]:
    """Call the kernel of this recurrence; the arguments are those of `attnlab.ops.scan.functions`."""
    module, function = KERNELS[name]
    kernel = getattr(import_module(module), function)
    fixed: dict[str, Any] = {"scale": scale, "output_final_state": output_final_state, "cu_seqlens": cu_seqlens}
    tensors = {"q": q, "k": k, "v": v, "initial_state": initial_state, **gates}
    if name == "linear_attention":
        fixed["normalize"] = False
    elif name == "retention":
        del tensors["g"]  # the kernel computes it
    elif name == "rwkv7":
        tensors = {{"q": "r", "g": "w"}.get(n, n): x for n, x in tensors.items()}
    names = list(tensors)
    out, state = _Kernel.apply(  # type: ignore[no-untyped-call]
        lambda *inputs: kernel(**dict(zip(names, inputs, strict=True)), **fixed), *tensors.values()
    )
    return out, state


class _Kernel(torch.autograd.Function):
    """A kernel whose second derivative raises an error: its backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, kernel: Callable[..., Any], *inputs: Any) -> tuple[Tensor, Tensor | None]:
        needed = ctx.needs_input_grad[1:]
        ctx.inputs = [
            x.detach().requires_grad_(need) if x is not None else x for x, need in zip(inputs, needed, strict=True)
        ]
        with torch.set_grad_enabled(any(needed)):
            ctx.outputs = kernel(*ctx.inputs)
        out, state = ctx.outputs
        return out.detach(), None if state is None else state.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.inputs if x is not None and x.requires_grad]
        pairs = [(out, g) for out, g in zip(ctx.outputs, gradients, strict=True) if out is not None and g is not None]
        outs, slopes = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outs, wanted, slopes, allow_unused=True))
        return None, *(next(found) if x is not None and x.requires_grad else None for x in ctx.inputs)
