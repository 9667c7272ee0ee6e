"""The fused kernel, and what every part of one computation gives to it.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from attnlab.ops.backends.dropout import dropout_attention
from attnlab.ops.backends.eager import explicit_attention, explicit_gradients
from attnlab.ops.dispatch import can_inspect_values

CHEAP = 2**15
"""Weights per batch item below which PyTorch's own random numbers cost nothing that matters."""


@dataclass(frozen=True)
class Kernel:
    """``dropout(softmax([sink | scale · q kᵀ + matrix])) [0 | v]``, by fused kernels where there is one.

    Under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` every operation is PyTorch's own, with derivatives of any
    order and forward-mode differentiation.

    Args:
        scale: what a score is multiplied by.
        sink: (H,), a logit in every row that takes weight and gives nothing.
        dropout: the probability of dropping a weight.
    """

    scale: float
    sink: Tensor | None = None
    dropout: float = 0.0

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Attend.

        Args:
            q: (B, H, N, d).
            k: (B, H, M, d).
            v: (B, H, M, d).
            matrix: Boolean (True means attend) or added to the scores, four axes or two.
            causal: the triangle, for as many keys as queries; without a matrix.

        Returns:
            (B, H, N, d); zeros in a fully masked row.
        """
        q, k, v = (_unit_stride(t) for t in (q, k, v))
        constant = matrix is None or not matrix.requires_grad
        direct = constant and k.shape[2] > 0 and q.numel() > 0 and _may_skip_dispatch(q, k, v, matrix, self.sink)
        if self.sink is not None:
            if direct and not self.dropout:
                added = None if matrix is None else _unit_stride(_added(matrix, q.dtype))
                sunk: Tensor = _SdpaWithSink.apply(q, k, v, self.sink, added, causal, self.scale)[0]  # type: ignore[no-untyped-call]
                return sunk
            return self._with_a_key(q, k, v, self.sink, matrix, causal)
        if self.dropout and direct and q.shape[1] * q.shape[2] * k.shape[2] >= CHEAP:
            return dropout_attention(q, k, v, _square(q) if causal else matrix, self.dropout, self.scale)
        return self._dispatched(q, k, v, matrix, causal)

    def _dispatched(self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None, causal: bool) -> Tensor:
        """By the kernel that PyTorch chooses."""
        default = 1 / math.sqrt(q.shape[-1])
        scale = None if self.scale == default else self.scale
        if scale is not None and torch.onnx.is_in_onnx_export():  # numbers are rounded to float32 there
            q, scale = q * q.new_tensor(self.scale / default), None
        if matrix is not None and matrix.is_floating_point() and _is_transformed():
            # Transformed, a matrix hides that it asks for a gradient, and the kernel taken would give it none.
            plain = torch.ops.aten._scaled_dot_product_attention_math
            out: Tensor = plain(q, k, v, matrix, self.dropout, causal, scale=self.scale)[0]
            return out
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=matrix, dropout_p=self.dropout, is_causal=causal, scale=scale
        )

    def _with_a_key(self, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, matrix: Tensor | None, causal: bool) -> Tensor:
        """The sink as one key more, whose score is the logit and whose value is zero."""
        (H, N), M = q.shape[1:3], k.shape[2]
        if causal:
            matrix = _square(q)
        matrix = q.new_zeros(1, 1, 1, M) if matrix is None else _added(matrix, q.dtype)
        matrix = matrix[(None,) * (4 - matrix.dim())]
        matrix = matrix.expand(matrix.shape[0], H, N, M)
        logit = sink.to(q.dtype)[:, None, None].expand(matrix.shape[0], H, N, 1)
        matrix = torch.cat([logit, matrix], -1)
        if torch.onnx.is_in_onnx_export():  # its second pass would take another kernel for what asks for a gradient
            matrix = matrix.detach()
        k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
        return Kernel(self.scale, dropout=self.dropout)._dispatched(q, k, v, matrix, False)


def _unit_stride(t: Tensor) -> Tensor:
    """``t`` with a last stride of 1: the raw kernels read nothing else, and PyTorch's choice falls to a slow one."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _may_skip_dispatch(*tensors: Tensor | None) -> bool:
    """Whether the raw flash kernel and our own functions can be called: on a CPU, where first derivatives suffice."""
    given = [t for t in tensors if t is not None]
    return (
        can_inspect_values(given[0])
        and torch.backends.cuda.flash_sdp_enabled()  # of all devices, in spite of its name: what sdpa_kernel() sets
        and all(forward_ad.unpack_dual(t).tangent is None for t in given)
    )


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def _square(q: Tensor) -> Tensor:
    """The triangle as a matrix, (N, N)."""
    N = q.shape[2]
    return torch.ones(N, N, dtype=torch.bool, device=q.device).tril()


def _added(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix, Boolean or of floats, as what is added to the scores."""
    if matrix.dtype != torch.bool:
        return matrix.to(dtype)
    return torch.zeros_like(matrix, dtype=dtype).masked_fill(~matrix, -torch.inf)


class _SdpaWithSink(torch.autograd.Function):
    """The fused kernel on a CPU, with its sums of powers corrected by the sink afterwards: no matrix is needed.

    With l the logarithm of a row's sum of powers, the sink makes it l' = log(exp l + exp s) and the answer
    out' = out · exp(l - l'). The kernel's own backward pass, given out' and l', is then that of the softmax with a
    sink.
    """

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, sink: Tensor, matrix: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=matrix, scale=scale
        )
        sunk = torch.logaddexp(total, sink.to(total.dtype)[:, None])
        return out * (total - sunk).exp().unsqueeze(-1).to(out.dtype), sunk

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, sink, matrix, causal, scale = inputs
        out, sunk = output
        ctx.mark_non_differentiable(sunk)
        ctx.save_for_backward(q, k, v, sink, matrix, out, sunk)
        ctx.causal, ctx.scale = causal, scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, matrix, out, sunk = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is asked for, which the kernel's backward pass has not
            matrix = _square(q) if ctx.causal else matrix

            def compute(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
                return explicit_attention(q, k, v, matrix, scale=ctx.scale, sink=sink)

            return (*explicit_gradients(compute, (q, k, v, sink), gradient), None, None, None)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, sunk, 0.0, ctx.causal, attn_mask=matrix, scale=ctx.scale
        )
        swallowed = (sink.to(sunk.dtype)[:, None] - sunk).exp()
        dsink = -(swallowed * (gradient * out).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink, None, None, None
