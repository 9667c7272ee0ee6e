"""The door to the scan engine: which form a recurrence takes, and how a long one is parted.

Axes: B batch, H heads, N steps, d width of a key, w width of a value, S sequences in one row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.scan.blocks import blockwise
from attnlab.ops.scan.checks import accumulation, check
from attnlab.ops.scan.forms import Steps, chunked, recurrent
from attnlab.utils.tracing import autocast_dtype

FEW = 4
"""Up to so many steps, to take them one by one is as fast."""


def linear_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    state: Tensor | None = None,
    segments: list[slice] | None = None,
    form: Literal["auto", "chunked", "parallel", "recurrent"] = "auto",
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """The recurrence behind linear attention: ``S_t = decay_t S_{t-1} + k_t u_tᵀ`` and ``o_t = S_tᵀ q_t``.

    ``u_t`` is ``v_t``; under the delta rule it is ``beta_t (v_t - (decay_t S_{t-1})ᵀ k_t)``: what the state would say
    at ``k_t`` is corrected, not added to. Decay and delta rule can be had together.

    Nothing is scaled, mapped or normalised here; a mechanism does that to ``q`` and ``k``. For the normaliser
    ``Σ_s q_tᵀ k_s`` (decayed as the values are) it appends a column of ones to ``v`` and divides by the last column of
    what comes out. With the identity for ``v`` the output is the matrix by which the recurrence mixes its values.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, w).
        log_decay: the logarithm of the decay, at most 0: (H,) for one constant a head, (B, H, N) for one a step, or
            (B, H, N, d) for one a step and channel of the key. -inf forgets all that was before: with it at the first
            step of each, sequences packed in one row know nothing of each other.
        beta: (B, H, N), the strength of the delta rule.
        state: what was before the first step, (B, H, d, w), zero if not given; (S, B, H, d, w) with ``segments``. In
            float64 where an input is, else in float32.
        segments: sequences packed in one row, as the slices that `attnlab.masks.Mask.segments` gives; each begins
            with a state of its own. They must follow each other and cover all steps; one may be empty.
        form: ``recurrent``, step by step; ``parallel``, all pairs of steps at once, O(N²); ``chunked``, parallel
            within a chunk and recurrent between chunks, O(N). ``auto`` takes the fastest.
        chunk: steps a chunk.

    Returns:
        The outputs, (B, H, N, w) in the dtype of ``v``, and the state after the last step, of the shape and dtype of
        ``state``. All is accumulated in the dtype of the state, under autocast too.

    Raises:
        TypeError: for a tensor that is not of floats.
        ValueError: for shapes, devices, a state's dtype or segments that do not fit; for an unknown form; for a
            ``log_decay`` above 0, which is looked for where that keeps nobody waiting: on a CPU, outside of a trace.

    An exported program computes all pairs of steps, O(N²). With ``torch.compile`` and a dynamic length, the delta rule
    is compiled anew for each number of chunks.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.3 (no decay); Sun et al. 2023, "Retentive
    Network", section 2.1 (a constant decay; the three forms); Dao & Gu 2024, "Transformers are SSMs", section 6 (a
    decay a step); Yang et al. 2023, "Gated Linear Attention", section 4 (a decay a channel); Yang et al. 2024,
    "Parallelizing Linear Transformers with the Delta Rule", section 3; Yang et al. 2024, "Gated Delta Networks",
    section 3 (both).
    """
    check(q, k, v, log_decay, beta, state, segments, form, chunk)
    if autocast_dtype(q.device) is not None:  # it would narrow what accumulates
        with torch.autocast(q.device.type, enabled=False):
            return linear_scan(
                q, k, v, log_decay=log_decay, beta=beta, state=state, segments=segments, form=form, chunk=chunk
            )
    if log_decay is not None:
        if log_decay.dim() == 1:
            log_decay = log_decay.unsqueeze(-1).expand(1, -1, q.shape[2])
        if log_decay.dim() == 3:
            log_decay = log_decay.unsqueeze(-1)
    steps = Steps(q, k, v, log_decay, None if beta is None else beta.unsqueeze(-1))
    if state is None:
        count = () if segments is None else (len(segments),)
        state = q.new_zeros(*count, *q.shape[:2], q.shape[3], v.shape[3], dtype=accumulation(q, k, v, log_decay, beta))
    if segments is None:
        return _whole(steps, state, form, chunk)
    parts = steps.split([part.stop - part.start for part in segments])
    done = [_whole(part, first, form, chunk) for part, first in zip(parts, state.unbind(0), strict=True)]
    if not done:
        return torch.zeros_like(v), state
    return _joined([out for out, _ in done]), torch.stack([last for _, last in done])


def _whole(steps: Steps, state: Tensor, form: str, chunk: int) -> tuple[Tensor, Tensor]:
    """One sequence, by the form asked for."""
    N, compiling = steps.q.shape[2], torch.compiler.is_compiling()
    if N == 0:
        return torch.zeros_like(steps.v), state
    path = _choose(N, chunk, compiling) if form == "auto" else Dispatch(form, "asked for")
    if not compiling:
        record(lambda: path)
    if path.name == "recurrent":
        return recurrent(steps, state)
    if path.name == "parallel":
        return chunked(steps, state, N)
    return chunked(steps, state, chunk) if compiling else blockwise(steps, state, chunk)


def _choose(N: int, chunk: int, compiling: bool) -> Dispatch:
    if N == 1 or (not compiling and N <= FEW):
        return Dispatch("recurrent", f"{N} steps" if N > 1 else "one step")
    if not compiling and chunk >= N:  # compiled, one graph for every length
        return Dispatch("parallel", f"{N} steps are one chunk")
    return Dispatch("chunked", f"{chunk} steps at once, and the state from there to the next")


def _joined(outs: list[Tensor]) -> Tensor:
    """The parts in one tensor, laid out as (B, N, H, w): joining heads is then free."""
    return outs[0] if len(outs) == 1 else torch.cat([out.transpose(1, 2) for out in outs], 1).transpose(1, 2)
