"""The linear recurrences as functions with the arguments of flash-linear-attention, on any device.

Each is a thin wrapper of `attnlab.ops.scan.linear_scan`: chunked, differentiable (twice), accumulated in float32 or
float64. On CUDA, with fla-core installed, the same call runs its kernels, which have first derivatives only.

Axes: B batch, T steps, H heads of the queries and keys, HV heads of the values (a multiple of H), K width of a key, V
width of a value, S sequences: B, or those of ``cu_seqlens``.

All functions take

- ``q``, ``k``: (B, T, H, K); ``v``: (B, T, HV, V);
- ``scale``: multiplies the queries; 1/√K by default;
- ``initial_state``: (S, HV, K, V), zero by default;
- ``output_final_state``: whether to return the state after the last step;
- ``cu_seqlens``: (S + 1,) integers, the boundaries 0, ..., T of sequences that are packed in one row (B = 1); with it, an
  initial or a final state makes the call read the boundaries, which waits for a GPU;

and return the outputs, (B, T, HV, V) in the dtype of ``v``, and the final state, (S, HV, K, V) in float32 (float64 for
float64 inputs), or None. They raise what `linear_scan` raises, and ValueError for ``cu_seqlens`` that do not fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.scan import kernels
from attnlab.ops.scan.checks import accumulation
from attnlab.ops.scan.linear import linear_scan
from attnlab.utils.tracing import can_inspect_values

Result = tuple[Tensor, Tensor | None]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = S_{t-1} + k_t v_tᵀ``, without a feature map or a normalizer.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.3.
    """
    return _run("linear_attention", q, k, v, scale, initial_state, output_final_state, cu_seqlens)


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = γ_h S_{t-1} + k_t v_tᵀ`` with the constant decay ``γ_h = 1 - 2^(-5 - h)`` of head h.

    Source: Sun et al. 2023, "Retentive Network", section 2.
    """
    gates = {"g": retention_log_decay(v.shape[2], v.device, accumulation(q, k, v))}
    return _run("retention", q, k, v, scale, initial_state, output_final_state, cu_seqlens, gates)


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
    """``S_t = exp(g_t) S_{t-1} + k_t v_tᵀ``, with a decay per step.

    Args:
        g: (B, T, HV), the logarithm of the decay, at most 0. The other arguments are those of the module.

    Source: Dao & Gu 2024, "Transformers are SSMs", section 6 (Mamba-2).
    """
    return _run("simple_gla", q, k, v, scale, initial_state, output_final_state, cu_seqlens, {"g": g})


def gla(
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
    """``S_t = diag(exp(g_t)) S_{t-1} + k_t v_tᵀ``, with a decay per step and channel of the key.

    Args:
        g: (B, T, HV, K), the logarithm of the decay, at most 0. The other arguments are those of the module.

    Source: Yang et al. 2023, "Gated Linear Attention Transformers", section 4.
    """
    return _run("gla", q, k, v, scale, initial_state, output_final_state, cu_seqlens, {"g": g})


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = S_{t-1} + β_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ``.

    Args:
        beta: (B, T, HV), the strength of each correction, from 0 to 1 (or 2).
        use_qk_l2norm_in_kernel: whether to divide queries and keys by their norms; keys must have norm 1 for the state
            to stay bounded. The other arguments are those of the module.

    Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule", section 3.
    """
    q, k = _normalized(q, k, use_qk_l2norm_in_kernel)
    return _run("delta_rule", q, k, v, scale, initial_state, output_final_state, cu_seqlens, {"beta": beta})


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = exp(g_t) S_{t-1} + β_t k_t (v_t - exp(g_t) S_{t-1}ᵀ k_t)ᵀ``.

    Args:
        g: (B, T, HV), the logarithm of the decay, at most 0.
        beta: (B, T, HV), as in `delta_rule`.
        use_qk_l2norm_in_kernel: as in `delta_rule`. The other arguments are those of the module.

    Source: Yang et al. 2024, "Gated Delta Networks", section 3.
    """
    q, k = _normalized(q, k, use_qk_l2norm_in_kernel)
    gates = {"g": g, "beta": beta}
    return _run("gated_delta_rule", q, k, v, scale, initial_state, output_final_state, cu_seqlens, gates)


def kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """The gated delta rule with a decay per channel of the key (Kimi Delta Attention).

    Args:
        g: (B, T, HV, K), the logarithm of the decay, at most 0.
        beta: (B, T, HV), as in `delta_rule`.
        use_qk_l2norm_in_kernel: as in `delta_rule`. The other arguments are those of the module.

    Source: Kimi Team 2025, "Kimi Linear", section 3.
    """
    q, k = _normalized(q, k, use_qk_l2norm_in_kernel)
    return _run("kda", q, k, v, scale, initial_state, output_final_state, cu_seqlens, {"g": g, "beta": beta})


def rwkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Result:
    """``S_t = diag(exp(w_t)) S_{t-1} + b_t (S_{t-1}ᵀ a_t)ᵀ + k_t v_tᵀ``; ``r`` are the queries.

    Args:
        w: (B, T, H, K), the logarithm of the decay, at most 0.
        a: (B, T, H, K), what is read from the state before the decay; -κ̂ in the paper.
        b: (B, T, H, K), where it is written to; κ̂ times the learning rate in the paper. The other arguments are those of
            the module.

    Source: Peng et al. 2025, "RWKV-7 Goose", section 3.
    """
    gates = {"g": w, "a": a, "b": b}
    return _run("rwkv7", r, k, v, scale, initial_state, output_final_state, cu_seqlens, gates)


def retention_log_decay(num_heads: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logarithm of the decay of each head, (H,): ``log(1 - 2^(-5 - h))``."""
    heads = torch.arange(num_heads, device=device, dtype=dtype)
    return torch.log1p(-torch.exp2(-5 - heads))


def _run(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    gates: dict[str, Tensor] | None = None,
) -> Result:
    gates = gates or {}
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens is not None:
        _check_boundaries(cu_seqlens, v)
    if kernels.applies(q, k, v, *gates.values()):
        record(lambda: Dispatch("fla", f"the kernel of {name} in fla-core"))
        return kernels.run(name, q, k, v, scale, initial_state, output_final_state, cu_seqlens, gates)
    groups = v.shape[2] // q.shape[2] if q.shape[2] else 1
    if groups > 1:  # some value heads share a query and a key
        q, k = q.repeat_interleave(groups, 2), k.repeat_interleave(groups, 2)
    options: dict[str, Any] = {("log_decay" if n == "g" else n): _heads_second(x) for n, x in gates.items()}
    dtype = accumulation(q, k, v, *gates.values())
    states = None if initial_state is None else initial_state.to(dtype)
    if cu_seqlens is not None:
        if states is None and not output_final_state:
            options["log_decay"] = _restarts(options.get("log_decay"), cu_seqlens, q, dtype)
        else:
            ends = cu_seqlens.tolist()
            options["segments"] = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
            states = None if states is None else states.unsqueeze(1)
    out, last = linear_scan(*(_heads_second(x) for x in (q * scale, k, v)), state=states, **options)
    if not output_final_state:
        return out.transpose(1, 2), None
    return out.transpose(1, 2), last if cu_seqlens is None else last.squeeze(1)


def _heads_second(x: Tensor) -> Tensor:
    """(B, T, H, ...) to (B, H, T, ...); one value per head, (H,), stays."""
    return x if x.dim() == 1 else x.transpose(1, 2)


def _normalized(q: Tensor, k: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    if not wanted:
        return q, k
    dtype = accumulation(q, k)
    return l2_norm(q.to(dtype)).to(q.dtype), l2_norm(k.to(dtype)).to(k.dtype)


def l2_norm(x: Tensor) -> Tensor:
    """Return ``x / √(Σ x² + 1e-6)`` over the last axis, the normalization of the kernels."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _restarts(log_decay: Tensor | None, boundaries: Tensor, q: Tensor, dtype: torch.dtype) -> Tensor:
    """The decay with -inf at the first step of every sequence."""
    B, T, H, _ = q.shape
    first = torch.zeros(T + 1, dtype=torch.bool, device=q.device).index_fill(0, boundaries[:-1].long(), True)[:T]
    if log_decay is None:
        log_decay = torch.zeros(B, H, T, device=q.device, dtype=dtype)
    elif log_decay.dim() == 1:
        log_decay = log_decay[:, None].expand(B, H, T)
    return log_decay.masked_fill(first if log_decay.dim() == 3 else first[:, None], -torch.inf)


def _check_boundaries(boundaries: Tensor, v: Tensor) -> None:
    if v.shape[0] != 1 or boundaries.dim() != 1 or boundaries.is_floating_point():
        raise ValueError(
            f"cu_seqlens takes integers of shape (sequences + 1,) for one row, batch 1; not {boundaries.dtype} of shape "
            f"{tuple(boundaries.shape)} for batch {v.shape[0]}"
        )
    if can_inspect_values(boundaries):
        ends = boundaries.tolist()
        if ends[:1] != [0] or ends[-1] != v.shape[1] or ends != sorted(ends):
            raise ValueError(f"cu_seqlens must ascend from 0 to {v.shape[1]}, the number of steps, not {ends}")
