"""Checks of the arguments of a scan.

Axes: B batch, H heads, N steps, d width of a key, w width of a value, S sequences in one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.utils.tracing import can_inspect_device

FORMS = ("auto", "chunked", "parallel", "recurrent")


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    state: Tensor | None,
    segments: list[slice] | None,
    form: str,
    chunk: int,
) -> None:
    """Check the arguments of `linear_scan`.

    Raises:
        TypeError: for a tensor that is not floating-point.
        ValueError: for any other argument that does not fit.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    tensors = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta, "a": a, "b": b, "state": state}
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name} must be a float tensor, not {x.dtype}")
        if x is not None and x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}; move it there")
    if q.dim() != 4:
        raise ValueError(f"q must have shape (batch, heads, steps, width), not {tuple(q.shape)}")
    B, H, N, d = q.shape
    if k.shape != q.shape:
        raise ValueError(f"k must have the shape of q, {tuple(q.shape)}, not {tuple(k.shape)}")
    if v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v must have shape ({B}, {H}, {N}, width), as q is {tuple(q.shape)}, not {tuple(v.shape)}")
    if beta is not None and beta.shape != (B, H, N):
        raise ValueError(f"beta must have shape (batch, heads, steps) = {(B, H, N)}, not {tuple(beta.shape)}")
    if (a is None) != (b is None):
        raise ValueError(f"a and b must be given together; {'a' if a is None else 'b'} is missing")
    if a is not None and beta is not None:
        raise ValueError("give either beta or a and b; for both, give a = -beta * decay * k, b = k and beta * v as v")
    for name, x in (("a", a), ("b", b)):
        if x is not None and x.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {tuple(q.shape)}, not {tuple(x.shape)}")
    if log_decay is not None:
        _check_decay(log_decay, q)
    if segments is not None:
        _check_segments(segments, N)
    if state is not None:
        wanted = (*(() if segments is None else (len(segments),)), B, H, d, v.shape[3])
        axes = f"({'' if segments is None else 'segments, '}batch, heads, key width, value width)"
        if state.shape != wanted:
            raise ValueError(f"state must have shape {axes} = {wanted}, not {tuple(state.shape)}")
        dtype = accumulation(q, k, v, log_decay, beta, a, b)
        if state.dtype != dtype:
            raise ValueError(
                f"state must be {dtype}, in which {v.dtype} values are accumulated, not {state.dtype}; "
                f"convert it with state.to({dtype})"
            )


def accumulation(*inputs: Tensor | None) -> torch.dtype:
    """Return the dtype of the state: float64 if an input is, otherwise float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in inputs) else torch.float32


def _check_decay(log_decay: Tensor, q: Tensor) -> None:
    B, H, N, d = q.shape
    expected = {1: (H,), 3: (B, H, N), 4: (B, H, N, d)}  # by axes: comparing B with H would fix both in an export
    if log_decay.shape != expected.get(log_decay.dim()):
        raise ValueError(
            f"log_decay must have shape (heads,) = {(H,)}, (batch, heads, steps) = {(B, H, N)} or "
            f"(batch, heads, steps, key width) = {(B, H, N, d)}, not {tuple(log_decay.shape)}"
        )
    if can_inspect_device(log_decay.device) and bool((log_decay > 0).any()):
        raise ValueError(
            f"log_decay must be at most 0, a decay of at most 1, not {log_decay.max().item():.4g}; "
            "give the logarithm, as F.logsigmoid does"
        )


def _check_segments(segments: list[slice], N: int) -> None:
    end = 0
    for part in segments:
        if part.step not in (None, 1) or part.start != end or part.stop < end:
            raise ValueError(f"segments must be consecutive from step 0 to step {N}; {part} comes after step {end}")
        end = part.stop
    if end != N:
        raise ValueError(f"segments must be consecutive from step 0 to step {N}; they end at step {end}")
