"""PyTorch's fused kernel: one call for everything, and the kernel call that the other backends make for each part.

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
from attnlab.ops.bias import Bias, materialized
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch
from attnlab.utils.tracing import can_inspect_values

MIN_DROPOUT_WEIGHTS = 2**15
"""Weights per batch item below which PyTorch's dropout is as fast as `dropout_attention`."""

MIN_CONTIGUOUS_KEYS = 4096
"""Keys from which contiguous copies of k and v pay off: 3 to 5 % at 8,192 keys of 8 heads of 64, measured on a CPU."""

CAUSAL_CHUNK_LENGTHS = (192, 768)
"""Lengths between which the causal kernel computes most of what it then masks: four chunks take 0.8 of the time."""


class Fused:
    """SDPA without a matrix: no mask, or a plain causal one."""

    def applies(self, call: AttentionCall) -> bool | None:
        """Return whether the call is causal; None for a call with a matrix, dropout, a sink, a cap or shared keys."""
        q, k, mask = call.q, call.k, call.mask
        if call.bias is not None or call.dropout or call.sink is not None or call.softcap is not None:
            return None
        if q.shape[1] != k.shape[1] or q.shape[-1] != call.v.shape[-1] or (q.is_cuda and missing_features(q)):
            return None
        if mask is None:
            return False
        if mask.is_causal:
            shortest, longest = CAUSAL_CHUNK_LENGTHS
            chunks = not torch.compiler.is_compiling() and call.can_inspect and shortest <= q.shape[2] <= longest
            return None if chunks else True
        return False if not torch.compiler.is_compiling() and mask.allows_all else None

    def run(self, call: AttentionCall, causal: bool) -> Tensor:
        q, k, v, scale = call.q, call.k, call.v, call.scale
        # The fused kernels need a last stride of 1; for others PyTorch falls back to a slow implementation.
        if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if not torch.compiler.is_compiling() and q.is_cpu and q.shape[2] >= MIN_CONTIGUOUS_KEYS:
            k, v = k.contiguous(), v.contiguous()
        if scale is not None and torch.onnx.is_in_onnx_export():  # the exporter rounds a scale to float32
            q, scale = q * q.new_tensor(scale * math.sqrt(q.shape[-1])), None
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

    def explain(self, call: AttentionCall, causal: bool) -> Dispatch:
        if causal:
            return Dispatch("causal", "a plain causal mask, for which the kernel needs no matrix")
        return Dispatch("fused", "every key is attended to")


class Sdpa:
    """SDPA for any call: mask and bias become one matrix."""

    def applies(self, call: AttentionCall) -> bool:
        return True

    def run(self, call: AttentionCall, plan: Any) -> Tensor:
        width = call.v.shape[-1]
        if call.q.shape[1] != call.k.shape[1] or call.q.shape[-1] != width or call.mask is None or call.mask.allows_all:
            call = call.expand()
        q, k, v, mask, bias, scale = call.q, call.k, call.v, call.mask, call.bias, call.score_scale
        matrix, causal = None, False
        if mask is not None:
            if bias is None and mask.is_causal:  # a condition, because the kernel takes no symbolic Boolean
                causal = True
            else:
                matrix = mask.tensor()
        if bias is not None:
            matrix = additive(matrix, bias, q.dtype)
        out = Kernel(scale, call.sink, call.dropout)(q, k, v, matrix, causal=causal)
        if torch.compiler.is_compiling() and mask is not None and matrix is not None and mask.mask.num_heads > 1:
            # A row may be fully masked in one head alone; the kernels zero it, the code of the ONNX exporter does not.
            out = out.masked_fill(~mask.tensor().any(-1, keepdim=True), 0.0)
        return out if out.shape[-1] == width else out[..., :width]

    def explain(self, call: AttentionCall, plan: Any) -> Dispatch:
        call = call.expand()
        if call.bias is None and (call.mask is None or call.mask.is_causal):
            return Fused().explain(call, call.mask is not None)
        parts = [*(["a bias"] if call.bias is not None else []), *([f"{call.mask.mask}"] if call.mask else [])]
        size = f"{call.q.shape[2]} queries and {call.k.shape[2]} keys"
        return Dispatch("matrix", f"{' and '.join(parts)}, as a matrix of {size}")


def unpad(out: Tensor, width: int) -> Tensor:
    """Return ``out`` without the features that `AttentionCall.expand` added."""
    return out if out.shape[-1] == width else out[..., :width]


def additive(permitted: Tensor | None, bias: Bias | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask and a bias as the one tensor that the fused kernel takes."""
    if bias is None:
        return permitted
    matrix = materialized(bias).to(dtype)
    if torch.onnx.is_in_onnx_export():  # its second pass would use another kernel for a bias that requires a gradient
        matrix = matrix.detach()
    return matrix if permitted is None else matrix.masked_fill(~permitted, -torch.inf)


@dataclass(frozen=True, eq=False)  # tensors have no equality
class Kernel:
    """``dropout(softmax([sink | scale · q kᵀ + matrix])) [0 | v]``, by a fused kernel where possible.

    Under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` every operation is differentiable by PyTorch, any
    number of times and in forward mode.

    Args:
        scale: the factor of the scores.
        sink: (H,), a logit in every row that takes weight and has no value.
        dropout: the probability of dropping a weight.
    """

    scale: float
    sink: Tensor | None = None
    dropout: float = 0.0

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Return the output for q (B, H, N, d), k and v (B, H, M, d): (B, H, N, d), zeros in a fully masked row.

        The matrix is Boolean (True means attend) or added to the scores, with four axes or two; ``causal`` stands for
        a square causal mask, without a matrix.
        """
        if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:  # as in `Fused`
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if self.sink is None and not self.dropout:
            return self._sdpa(q, k, v, matrix, causal)
        constant = matrix is None or not matrix.requires_grad
        direct = constant and k.shape[2] > 0 and q.numel() > 0 and _may_skip_dispatch(q, k, v, matrix, self.sink)
        if self.sink is not None:
            if direct and not self.dropout:
                added = None if matrix is None else _added(matrix, q.dtype)
                added = added if added is None or added.stride(-1) == 1 else added.contiguous()
                sunk: Tensor = _SdpaWithSink.apply(q, k, v, self.sink, added, causal, self.scale)[0]  # type: ignore[no-untyped-call]
                return sunk
            return self._with_a_key(q, k, v, self.sink, matrix, causal)
        if self.dropout and direct and q.shape[1] * q.shape[2] * k.shape[2] >= MIN_DROPOUT_WEIGHTS:
            return dropout_attention(q, k, v, _square(q) if causal else matrix, self.dropout, self.scale)
        return self._sdpa(q, k, v, matrix, causal)

    def _with_a_key(self, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, matrix: Tensor | None, causal: bool) -> Tensor:
        """Add the sink as a first key with a value of zero, whose score is the product of one more feature.

        No matrix is needed: that of the sinks would have a value per head, query and key.
        """
        (B, H, N, d), M = q.shape, k.shape[2]
        logit = (sink / self.scale)[:, None, None].expand(B, H, 1, 1).to(k.dtype)
        first = torch.cat([k.new_zeros(B, H, 1, d), logit], -1)
        q, k = torch.cat([q, q.new_ones(B, H, N, 1)], -1), torch.cat([first, F.pad(k, (0, 1))], 2)
        v = F.pad(v, (0, 1, 1, 0))
        if causal:  # one more query keeps the mask square
            return self._sdpa(F.pad(q, (0, 0, 1, 0)), k, v, None, causal)[:, :, 1:, :d]
        if matrix is not None:
            matrix = F.pad(matrix.expand(*matrix.shape[:-1], M), (1, 0), value=float(matrix.dtype == torch.bool))
        return self._sdpa(q, k, v, matrix)[..., :d]

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, matrix: Tensor | None, causal: bool = False) -> Tensor:
        """Call `F.scaled_dot_product_attention`, with workarounds."""
        width = v.shape[-1]
        if more := missing_features(v):
            q, k, v = F.pad(q, (0, more)), F.pad(k, (0, more)), F.pad(v, (0, more))
            return self._sdpa(q, k, v, matrix, causal)[..., :width]
        usual = 1 / math.sqrt(q.shape[-1])
        scale: float | None = None if self.scale == usual else self.scale
        if scale is not None and torch.onnx.is_in_onnx_export():  # the exporter rounds a scale to float32
            q, scale = q * q.new_tensor(scale / usual), None
        if matrix is not None and matrix.is_floating_point() and _is_transformed():
            # In a functorch transform the matrix hides that it requires a gradient; the fused kernel would give it none
            math_kernel = torch.ops.aten._scaled_dot_product_attention_math
            out: Tensor = math_kernel(q, k, v, matrix, self.dropout, causal, scale=self.scale)[0]
            return out
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=matrix, dropout_p=self.dropout, is_causal=causal, scale=scale
        )


def missing_features(t: Tensor) -> int:
    """The features missing to a multiple of 8 on a GPU, whose fused kernels support no other widths with a mask."""
    return -t.shape[-1] % 8 if t.is_cuda else 0


def _may_skip_dispatch(*tensors: Tensor | None) -> bool:
    """Whether the flash kernel and custom autograd functions can be called directly: eagerly on a CPU."""
    present = [t for t in tensors if t is not None]
    return (
        can_inspect_values(present[0])
        and torch.backends.cuda.flash_sdp_enabled()  # of all devices, despite its name: sdpa_kernel() sets it
        and all(forward_ad.unpack_dual(t).tangent is None for t in present)
    )


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def _square(q: Tensor) -> Tensor:
    """The causal mask as a matrix, (N, N)."""
    N = q.shape[2]
    return torch.ones(N, N, dtype=torch.bool, device=q.device).tril()


def _added(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A Boolean or float matrix as a term of the scores."""
    if matrix.dtype != torch.bool:
        return matrix.to(dtype)
    return torch.zeros_like(matrix, dtype=dtype).masked_fill(~matrix, -torch.inf)


class _SdpaWithSink(torch.autograd.Function):
    """The fused kernel on a CPU, whose normalizers are corrected by the sink afterwards, without a matrix.

    With l the log-sum-exp of a row, the sink makes it l' = log(exp l + exp s), and the output out' = out · exp(l - l').
    The backward pass of the kernel, called with out' and l', is then that of the softmax with a sink.
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
        if torch.is_grad_enabled():  # create_graph=True: the backward pass of the kernel has no derivative
            matrix = _square(q) if ctx.causal else matrix

            def compute(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
                return explicit_attention(q, k, v, matrix, scale=ctx.scale, sink=sink)

            return (*explicit_gradients(compute, (q, k, v, sink), gradient), None, None, None)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, q, k, v, out, sunk, 0.0, ctx.causal, attn_mask=matrix, scale=ctx.scale
        )
        sink_weight = (sink.to(sunk.dtype)[:, None] - sunk).exp()
        dsink = -(sink_weight * (gradient * out).sum(-1)).sum((0, 2)).to(sink.dtype)
        return dq, dk, dv, dsink, None, None, None
