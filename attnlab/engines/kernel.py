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

from attnlab.engines.paths import may_split


@dataclass(frozen=True)
class Kernel:
    """``softmax([sink | scale · q kᵀ + matrix]) [0 | v]``, by PyTorch's fused kernels.

    Args:
        scale: what a score is multiplied by.
        sink: (H,), a logit in every row that takes weight and gives nothing.
    """

    scale: float
    sink: Tensor | None = None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        matrix: Tensor | None = None,
        *,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> Tensor:
        """Attend.

        Args:
            q: (B, H, N, d).
            k: (B, H, M, d).
            v: (B, H, M, d).
            matrix: Boolean (True means may look) or added to the scores, four axes or two.
            causal: the triangle, for as many keys as queries; without a matrix.
            dropout: the probability of dropping a weight.

        Returns:
            (B, H, N, d).
        """
        if self.sink is None:
            if torch.onnx.is_in_onnx_export() and self._said(q) is not None:  # what is said is rounded to float32 there
                factor = q.new_tensor(self.scale * math.sqrt(q.shape[-1]))
                return Kernel(1 / math.sqrt(q.shape[-1]))(q * factor, k, v, matrix, causal=causal, dropout=dropout)
            if matrix is not None and matrix.is_floating_point() and _is_transformed():
                # Transformed, a matrix hides that it asks for a gradient, and the kernel taken would give it none.
                plain = torch.ops.aten._scaled_dot_product_attention_math
                out: Tensor = plain(q, k, v, matrix, dropout, causal, scale=self.scale)[0]
                return out
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=matrix, dropout_p=dropout, is_causal=causal, scale=self._said(q)
            )
        learned = matrix is not None and matrix.requires_grad
        if may_split(q) and not dropout and not learned and k.shape[2] and q.numel():
            added = None if matrix is None else _added(matrix, q.dtype)
            sunk: Tensor = _Sunk.apply(q, k, v, self.sink, added, causal, self.scale)[0]  # type: ignore[no-untyped-call]
            return sunk
        return self._with_a_key(q, k, v, self.sink, matrix, causal, dropout)

    def _with_a_key(
        self, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, matrix: Tensor | None, causal: bool, dropout: float
    ) -> Tensor:
        """The sink as one key more, whose score is the logit and whose value is zero."""
        (H, N), M = q.shape[1:3], k.shape[2]
        if causal:
            matrix = torch.ones(N, M, dtype=torch.bool, device=q.device).tril()
        matrix = q.new_zeros(1, 1, 1, M) if matrix is None else _added(matrix, q.dtype)
        matrix = matrix[(None,) * (4 - matrix.dim())]
        matrix = matrix.expand(matrix.shape[0], H, N, M)
        logit = sink.to(q.dtype)[:, None, None].expand(matrix.shape[0], H, N, 1)
        matrix = torch.cat([logit, matrix], -1)
        if torch.onnx.is_in_onnx_export():  # its second pass would take another kernel for what asks for a gradient
            matrix = matrix.detach()
        k, v = F.pad(k, (0, 0, 1, 0)), F.pad(v, (0, 0, 1, 0))
        return Kernel(self.scale)(q, k, v, matrix, dropout=dropout)

    def _said(self, q: Tensor) -> float | None:
        """The scale; None where it is PyTorch's own."""
        return None if self.scale == 1 / math.sqrt(q.shape[-1]) else self.scale


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def _added(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Who may look, or what is added, as what is added."""
    if matrix.dtype != torch.bool:
        return matrix.to(dtype)
    return torch.zeros_like(matrix, dtype=dtype).masked_fill(~matrix, -torch.inf)


class _Sunk(torch.autograd.Function):
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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sink, matrix, out, sunk = ctx.saved_tensors
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, sunk, 0.0, ctx.causal, attn_mask=matrix, scale=ctx.scale
        )
        swallowed = (sink.to(sunk.dtype)[:, None] - sunk).exp()
        dsink = -(swallowed * (gradient * out).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink, None, None, None
