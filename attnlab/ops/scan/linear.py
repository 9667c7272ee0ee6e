"""The entry point of the scan: it chooses the form of a recurrence and splits long sequences.

Axes: B batch, H heads, N steps, d width of a key, w width of a value, S sequences in one row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.scan.blocks import blockwise, joined
from attnlab.ops.scan.checks import accumulation, check
from attnlab.ops.scan.forms import Steps, chunked, exported, recurrent
from attnlab.utils.tracing import full_precision

MAX_RECURRENT_STEPS = 4
"""Steps up to which the recurrent form is as fast as the others."""

CHUNK = 64
"""Steps per chunk."""

CORRECTED_CHUNK = 32
"""Steps per chunk on a CPU if a step corrects the state: the corrections of a chunk are solved at cubic cost."""


def linear_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    state: Tensor | None = None,
    segments: list[slice] | None = None,
    form: Literal["auto", "chunked", "parallel", "recurrent"] = "auto",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence behind linear attention: ``S_t = decay_t S_{t-1} + k_t u_tᵀ`` and ``o_t = S_tᵀ q_t``.

    ``u_t`` is ``v_t``; under the delta rule it is ``beta_t (v_t - (decay_t S_{t-1})ᵀ k_t)``, which corrects the value
    that the state holds for ``k_t``. With ``a`` and ``b``, ``b_t (S_{t-1}ᵀ a_t)ᵀ`` is added to the state: its
    transition is a diagonal matrix plus one of rank one. Either can be combined with a decay.

    Feature maps, scaling and normalization of ``q`` and ``k`` are left to the mechanism. For the normalizer
    ``Σ_s q_tᵀ k_s`` (decayed like the values), append a column of ones to ``v`` and divide by the last column of the
    output. With the identity as ``v`` the output is the matrix that the recurrence applies to its values.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, w).
        log_decay: the logarithm of the decay, at most 0: (H,) for one constant per head, (B, H, N) for one per step, or
            (B, H, N, d) for one per step and channel of the key. -inf clears the state: with it at the first step of
            each, sequences that are packed in one row are independent.
        beta: (B, H, N), the strength of the delta rule.
        a: (B, H, N, d), the vectors that read the state before each step; a channel that the decay clears is not read.
        b: (B, H, N, d), the vectors that write what ``a`` read. Both or none; not with ``beta``.
        state: the initial state, (B, H, d, w), zero by default; (S, B, H, d, w) with ``segments``. Float64 if an input
            is, otherwise float32.
        segments: sequences packed in one row, as slices (see `attnlab.masks.Mask.segments`); each starts with its own
            state. They must be consecutive and cover all steps; a segment may be empty.
        form: ``recurrent``, step by step; ``parallel``, all pairs of steps at once, O(N²); ``chunked``, parallel
            within a chunk and recurrent between chunks, O(N). ``auto`` chooses the fastest.
        chunk: the number of steps per chunk; by default the fastest for the device and the kind of recurrence.

    Returns:
        The outputs, (B, H, N, w) in the dtype of ``v``, and the state after the last step, in the shape and dtype of
        ``state``. Sums are accumulated in the dtype of the state, also under autocast.

    Raises:
        TypeError: for a tensor that is not floating-point.
        ValueError: for shapes, devices, a state's dtype or segments that do not fit; for an unknown form; for a
            ``log_decay`` above 0 (checked on a CPU, outside of a trace).

    An exported program computes all pairs of steps, O(N²); with a decay per channel, the delta rule or ``a`` and ``b``,
    step by step, O(N).
    With ``torch.compile`` and a dynamic length, these two are recompiled for each number of chunks.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.3 (no decay); Sun et al. 2023, "Retentive
    Network", section 2.1 (a constant decay; the three forms); Dao & Gu 2024, "Transformers are SSMs", section 6 (a
    decay per step); Yang et al. 2023, "Gated Linear Attention", section 4 (a decay per channel); Yang et al. 2024,
    "Parallelizing Linear Transformers with the Delta Rule", section 3; Yang et al. 2024, "Gated Delta Networks",
    section 3 (both); Peng et al. 2025, "RWKV-7 Goose", section 3 (``a`` and ``b``).
    """
    if chunk is None:
        corrected = (beta is not None or a is not None) and q.device.type == "cpu"
        chunk = CORRECTED_CHUNK if corrected and not torch.compiler.is_compiling() else CHUNK
    check(q, k, v, log_decay, beta, a, b, state, segments, form, chunk)
    if log_decay is not None:
        if log_decay.dim() == 1:
            log_decay = log_decay.unsqueeze(-1).expand(1, -1, q.shape[2])
        if log_decay.dim() == 3:
            log_decay = log_decay.unsqueeze(-1)
        if a is not None:
            a = a.masked_fill(log_decay == -torch.inf, 0.0)
    steps = Steps(q, k, v, log_decay, None if beta is None else beta.unsqueeze(-1), a, b)
    if state is None:
        count = () if segments is None else (len(segments),)
        state = q.new_zeros(
            *count, *q.shape[:2], q.shape[3], v.shape[3], dtype=accumulation(q, k, v, log_decay, beta, a, b)
        )
    with full_precision(q.device):  # autocast would lower the precision of the sums
        if segments is None:
            return _whole(steps, state, form, chunk)
        parts = steps.split([part.stop - part.start for part in segments])
        results = [_whole(part, first, form, chunk) for part, first in zip(parts, state.unbind(0), strict=True)]
    if not results:
        return torch.zeros_like(v), state
    return joined([out for out, _ in results]), torch.stack([last for _, last in results])


def _whole(steps: Steps, state: Tensor, form: str, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute one sequence."""
    N, compiling = steps.q.shape[2], torch.compiler.is_compiling()
    if N == 0:
        return torch.zeros_like(steps.v), state
    per_channel = steps.log_decay is not None and steps.log_decay.shape[-1] > 1
    if torch.compiler.is_exporting() and (per_channel or steps.beta is not None or steps.a is not None):
        return exported(steps, state)
    choice = _choose(N, chunk, compiling) if form == "auto" else Dispatch(form, f"form={form!r}")
    if not compiling:
        record(lambda: choice)
    if choice.name == "recurrent":
        return recurrent(steps, state)
    if choice.name == "parallel":
        return chunked(steps, state, N)
    return chunked(steps, state, chunk) if compiling else blockwise(steps, state, chunk)


def _choose(N: int, chunk: int, compiling: bool) -> Dispatch:
    if N == 1 or (not compiling and N <= MAX_RECURRENT_STEPS):
        return Dispatch("recurrent", f"{N} steps" if N > 1 else "one step")
    if not compiling and chunk >= N:  # compiled, one graph for every length
        return Dispatch("parallel", f"{N} steps are one chunk")
    return Dispatch("chunked", f"{chunk} steps at once, and a state between chunks")
