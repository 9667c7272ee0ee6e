"""The Triton kernels of flash-linear-attention (fla-core), where they can run."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

KERNELS = {
    "linear_attention": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "retention": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "simple_gla": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "gla": ("fla.ops.gla", "chunk_gla"),
    "delta_rule": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta_rule": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "kda": ("fla.ops.kda", "chunk_kda"),
    "rwkv7": ("fla.ops.rwkv7", "chunk_rwkv7"),
}
"""The module and the function of each recurrence."""

GROUPED = ("gated_delta_rule", "kda")
"""The kernels that take more value heads than query heads."""

DTYPES = (torch.float16, torch.bfloat16)
"""The kernels multiply float32 matrices in TF32, and two of them refuse float32; ours keep its precision."""

MAX_KEY_WIDTH = 256
"""The widest keys that all kernels take."""

HOPPER = 9
"""The major compute capability of the H100 and its relatives."""

REFUSED_ON_HOPPER = ("simple_gla", "gated_delta_rule")
"""The kernels whose backward pass raises an error on Hopper GPUs with some versions of Triton (fla issue 640)."""


def applies(name: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel of this recurrence takes these tensors: on CUDA, in half precision, outside of a trace."""
    return (
        q.is_cuda
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and q.shape[3] <= MAX_KEY_WIDTH
        and v.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _installed()
        and not (name in REFUSED_ON_HOPPER and _is_refused(q.device))
    )


@cache
def _installed() -> bool:
    return find_spec("fla") is not None and find_spec("triton") is not None


@cache
def _is_refused(device: torch.device) -> bool:
    """Whether fla finds the gradients of this Triton wrong on this GPU, and has no other kernel for them."""
    version = TorchVersion(import_module("triton").__version__)  # understands all versions, such as 3.6.0a1+git
    return (
        torch.cuda.get_device_capability(device)[0] == HOPPER
        and version >= "3.4.0"
        and version < "3.7.1"
        and find_spec("tilelang") is None
    )


def run(
    name: str, inputs: dict[str, Tensor], initial_state: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Call the kernel of this recurrence.

    Args:
        name: a key of `KERNELS`.
        inputs: the tensors of each step by the names of the kernel; the queries are first.
        initial_state: as for the kernel, in any dtype.
        options: the other arguments of the kernel.
    """
    module, function = KERNELS[name]
    state = None if initial_state is None else initial_state.float()
    out, last = getattr(import_module(module), function)(**inputs, initial_state=state, **options)
    return _FirstDerivative.apply(out), None if last is None else _FirstDerivative.apply(last)  # type: ignore[no-untyped-call]


class _FirstDerivative(torch.autograd.Function):
    """The identity; it raises an error for second derivatives, which the kernels would silently leave out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the kernels of fla-core have no second derivatives (create_graph=True); "
                "convert the inputs to float32, for which they are not used"
            )
        return gradient
