"""The linear recurrences as functions with the arguments of flash-linear-attention (fla), on any device.

Each wraps `attnlab.ops.scan.linear_scan`: chunked, differentiable twice, accumulated in float32 or float64. On CUDA,
with fla-core installed, float16 and bfloat16 inputs run its kernels, which have first derivatives only.

Axes: B batch, T steps, H heads of the queries and keys, HV heads of the values (a multiple of H), K width of a key, V
width of a value, S sequences: B, or those of ``cu_seqlens``.

All functions take

- ``q``, ``k``: (B, T, H, K); ``v``: (B, T, HV, V);
- ``scale``: multiplies the queries; 1/√K by default;
- ``initial_state``: (S, HV, K, V), zero by default; converted to the dtype of the final state;
- ``output_final_state``: whether to return the state after the last step;
- ``cu_seqlens``: (S + 1,) integers, the boundaries 0, ..., T of sequences that are packed in one row (B = 1). Sequences
  may be empty. With an initial or a final state, the boundaries are read, which waits for a GPU;
- ``use_qk_l2norm_in_kernel``, the delta rules only: whether to divide queries and keys by their norms. The state stays
  bounded if keys have norm 1 and ``beta`` is from 0 to 2;

and return the outputs, (B, T, HV, V) in the dtype of ``v``, and the final state, (S, HV, K, V) in float32 (float64 if
an input is float64), or None.

They raise TypeError for a tensor that is not floating-point, and ValueError for shapes, devices or boundaries that do
not fit, and for the logarithm of a decay above 0 (checked on a CPU, outside of a trace).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.scan import kernels
from attnlab.ops.scan.checks import accumulation
from attnlab.ops.scan.linear import linear_scan
from attnlab.utils.tracing import can_inspect_values, full_precision

Result = tuple[Tensor, Tensor | None]

PER_CHANNEL = ("gla", "kda", "rwkv7")
"""The recurrences with a decay per channel of the key."""

LOG_DECAYS = dict.fromkeys(("g", "g_gamma", "w"), "log_decay")
"""The names that fla gives to what `linear_scan` calls ``log_decay``."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = S_{t-1} + k_t v_tᵀ`` and ``o_t = S_tᵀ q_t``, without a feature map.

    This is fla's ``chunk_linear_attn`` with ``normalize=False``. For the normalizer, append a column of ones to ``v``
    and divide by the last column of the outputs.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.3.
    """
    return _run("linear_attention", q, k, v, scale, initial_state, output_final_state, cu_seqlens)


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = γ_h S_{t-1} + k_t v_tᵀ`` with the constant decay ``γ_h = 1 - 2^(-5 - h)`` of head h.

    Source: Sun et al. 2023, "Retentive Network", section 2.
    """
    return _run("retention", q, k, v, scale, initial_state, output_final_state, cu_seqlens)


def simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = exp(g_t) S_{t-1} + k_t v_tᵀ``, with a decay per step, whose logarithm is ``g``, (B, T, HV).

    Source: Dao & Gu 2024, "Transformers are SSMs", section 6 (Mamba-2).
    """
    return _run("simple_gla", q, k, v, scale, initial_state, output_final_state, cu_seqlens, g=g)


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ``, with a decay per step and channel: ``g``, (B, T, HV, K).

    Source: Yang et al. 2023, "Gated Linear Attention Transformers", section 4.
    """
    return _run("gla", q, k, v, scale, initial_state, output_final_state, cu_seqlens, g=g)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = S_{t-1} + β_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ``, with the strength ``beta`` of each correction, (B, T, HV).

    Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", section 3.
    """
    norm, options = use_qk_l2norm_in_kernel, (scale, initial_state, output_final_state, cu_seqlens)
    return _run("delta_rule", q, k, v, *options, norm, beta=beta)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = exp(g_t) S_{t-1} + β_t k_t (v_t - exp(g_t) S_{t-1}ᵀ k_t)ᵀ``.

    ``g``, the logarithm of the decay, and ``beta``, the strength of each correction, are (B, T, HV).

    Source: Yang et al. 2024, "Gated Delta Networks", section 3.
    """
    norm, options = use_qk_l2norm_in_kernel, (scale, initial_state, output_final_state, cu_seqlens)
    return _run("gated_delta_rule", q, k, v, *options, norm, g=g, beta=beta)


def kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """`gated_delta_rule` with a decay per step and channel of the key: ``g``, (B, T, HV, K).

    Source: Kimi Team 2025, "Kimi Linear", section 3 (Kimi Delta Attention).
    """
    norm, options = use_qk_l2norm_in_kernel, (scale, initial_state, output_final_state, cu_seqlens)
    return _run("kda", q, k, v, *options, norm, g=g, beta=beta)


def rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float | None = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = diag(exp(w_t)) S_{t-1} + b_t (S_{t-1}ᵀ a_t)ᵀ + k_t v_tᵀ``; ``r`` are the queries, by default not scaled.

    ``w``, ``a`` and ``b`` are (B, T, HV, K): the logarithm of the decay, the vector that reads the state before the
    decay (-κ̂ in the paper), and the vector that writes what was read (κ̂ times the learning rate).

    Source: Peng et al. 2025, "RWKV-7 Goose", section 3.
    """
    return _run("rwkv7", r, k, v, scale, initial_state, output_final_state, cu_seqlens, w=w, a=a, b=b)


def retention_log_decay(num_heads: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logarithm of the decay of each head, (H,): ``log(1 - 2^(-5 - h))``."""
    heads = torch.arange(num_heads, device=device, dtype=dtype)
    return torch.log1p(-torch.exp2(-5 - heads))


def l2_norm(x: Tensor) -> Tensor:
    """Return ``x / √(Σ x² + 1e-6)`` over the last axis, the normalization of fla's kernels."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _run(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    normalize: bool = False,
    **gates: Tensor,
) -> Result:
    _check(name, q, k, v, initial_state, cu_seqlens, gates)
    scale, groups = q.shape[3] ** -0.5 if scale is None else scale, v.shape[2] // max(q.shape[2], 1)
    if name == "retention":
        gates["g_gamma"] = retention_log_decay(v.shape[2], v.device, accumulation(q, k, v))
    fused = kernels.applies(name, q, k, v)
    if groups > 1 and not (fused and name in kernels.GROUPED):  # several value heads share a query and a key
        q, k = (x.unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3) for x in (q, k))
    if fused:
        record(lambda: Dispatch("fla", f"the kernel of {name} in fla-core"))
        options: dict[str, Any] = {"use_qk_l2norm_in_kernel": True} if normalize else {}
        options |= {"scale": scale, "output_final_state": output_final_state, "cu_seqlens": cu_seqlens}
        inputs = {"r" if name == "rwkv7" else "q": q, "k": k, "v": v, **gates}
        return kernels.run(name, inputs, initial_state, **options)
    dtype = accumulation(q, k, v, *gates.values())
    with full_precision(q.device):
        q, k = q.to(dtype), k.to(dtype) if normalize else k
        if normalize:
            q, k = l2_norm(q), l2_norm(k)
        q = q * scale
    steps: dict[str, Any] = {LOG_DECAYS.get(n, n): _heads_second(x) for n, x in gates.items()}
    state = None if initial_state is None else initial_state.to(dtype)
    segments = None
    if cu_seqlens is not None and state is None and not output_final_state:
        steps["log_decay"] = _restarts(steps.get("log_decay"), cu_seqlens, v, dtype)
    elif cu_seqlens is not None:
        segments = [slice(start, end) for start, end in pairwise(cu_seqlens.tolist())]
        state = None if state is None else state.unsqueeze(1)
    out, last = linear_scan(*map(_heads_second, (q, k, v)), **steps, state=state, segments=segments)
    if not output_final_state:
        return out.transpose(1, 2), None
    return out.transpose(1, 2), last if segments is None else last.squeeze(1)


def _heads_second(x: Tensor) -> Tensor:
    """(B, T, H, ...) to (B, H, T, ...); one value per head, (H,), stays."""
    return x if x.dim() == 1 else x.transpose(1, 2)


def _restarts(log_decay: Tensor | None, cu_seqlens: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The decay (B, HV, T, ...) with -inf, which clears the state, at the first step of every sequence."""
    B, T, HV, _ = v.shape
    starts = torch.zeros(T + 1, dtype=torch.bool, device=v.device).index_fill(0, cu_seqlens[:-1].long(), True)[:T]
    if log_decay is None:
        log_decay = torch.zeros(B, HV, T, device=v.device, dtype=dtype)
    elif log_decay.dim() == 1:
        log_decay = log_decay[:, None].expand(B, HV, T)
    return log_decay.masked_fill(starts if log_decay.dim() == 3 else starts[:, None], -torch.inf)


def _check(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    gates: dict[str, Tensor],
) -> None:
    """Check what `linear_scan` would name differently or not see."""
    first = "r" if name == "rwkv7" else "q"
    if q.dim() != 4:
        raise ValueError(f"{first} must have shape (batch, steps, heads, key width), not {tuple(q.shape)}")
    if k.shape != q.shape:
        raise ValueError(f"k must have the shape of {first}, {tuple(q.shape)}, not {tuple(k.shape)}")
    B, T, H, K = q.shape
    if v.dim() != 4 or v.shape[:2] != (B, T):
        raise ValueError(f"v must have shape ({B}, {T}, value heads, value width), not {tuple(v.shape)}")
    HV, V = v.shape[2:]
    if HV != H and (H == 0 or HV % H):
        raise ValueError(f"the number of value heads ({HV}) must be a multiple of the number of query heads ({H})")
    for gate, x in gates.items():
        wide = gate in ("a", "b") or (gate != "beta" and name in PER_CHANNEL)
        shape = (B, T, HV, K) if wide else (B, T, HV)
        if x.shape != shape:
            axes = "(batch, steps, value heads, key width)" if wide else "(batch, steps, value heads)"
            raise ValueError(f"{gate} must have shape {axes} = {shape}, not {tuple(x.shape)}")
    tensors = {first: q, "k": k, "v": v, **gates, "initial_state": state, "cu_seqlens": cu_seqlens}
    for other, tensor in tensors.items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{other} is on {tensor.device}, {first} on {q.device}; move it there")
        if tensor is not None and other != "cu_seqlens" and not tensor.is_floating_point():
            raise TypeError(f"{other} must be a float tensor, not {tensor.dtype}")
    if cu_seqlens is not None:
        _check_boundaries(cu_seqlens, B, T)
    count = B if cu_seqlens is None else len(cu_seqlens) - 1
    if state is not None and state.shape != (count, HV, K, V):
        raise ValueError(
            f"initial_state must have shape (sequences, value heads, key width, value width) = {(count, HV, K, V)}, "
            f"not {tuple(state.shape)}"
        )


def _check_boundaries(cu_seqlens: Tensor, B: int, T: int) -> None:
    if cu_seqlens.dim() != 1 or len(cu_seqlens) == 0 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "cu_seqlens must have shape (sequences + 1,) and dtype int32 or int64, "
            f"not {tuple(cu_seqlens.shape)} and {cu_seqlens.dtype}"
        )
    if B != 1:
        raise ValueError(f"cu_seqlens needs the sequences packed in one row, a batch of 1, not {B}")
    if can_inspect_values(cu_seqlens):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != T or ends != sorted(ends):
            raise ValueError(f"cu_seqlens must ascend from 0 to {T}, the number of steps, not {ends}")
