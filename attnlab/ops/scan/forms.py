"""The recurrence step by step, and chunk by chunk.

    S_t = decay_t S_{t-1} + b_t (S_{t-1}ᵀ a_t)ᵀ + k_t u_tᵀ
    o_t = S_tᵀ q_t

``u_t`` is ``v_t``, or ``beta_t (v_t - (decay_t S_{t-1})ᵀ k_t)`` under the delta rule. ``a_t`` and ``b_t`` are optional.

Axes: B batch, H heads, N steps, d width of a key, w width of a value, T chunks, C steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from attnlab.ops.scan.decay import chunk_of, segment_sum
from attnlab.ops.scan.triangular import unit_lower_inverse


class Steps(NamedTuple):
    """The inputs of each step.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, w).
        log_decay: (B | 1, H, N, 1 | d), or None.
        beta: (B, H, N, 1), or None.
        a: (B, H, N, d), or None.
        b: (B, H, N, d), or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None

    def split(self, lengths: int | list[int]) -> list[Steps]:
        """Return parts of these lengths; split, because the gradient of a slice is as large as the whole."""
        parts = (repeat(None) if x is None else x.split(lengths, 2) for x in self)
        return [Steps(*part) for part in zip(*parts, strict=False)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """Return ``change`` of each tensor."""
        return Steps(*(x if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def chunks(self, size: int, dtype: torch.dtype) -> Steps:
        """Return (B, H, T, C, ...) for (B, H, N, ...); the last chunk is padded with steps that change nothing."""
        if torch.compiler.is_exporting():  # one chunk: comparing the length with the chunk size would fix it
            return self.map(lambda x: x.to(dtype).unsqueeze(2))
        missing = -self.q.shape[2] % size
        wide = self.map(lambda x: x.to(dtype))
        if torch.compiler.is_compiling() or missing:  # compiled, one graph for every length
            wide = wide.map(lambda x: F.pad(x, (0, 0, 0, missing)))
        # Otherwise every product would make a contiguous copy, and keep it for the backward pass.
        return wide.map(lambda x: x.unflatten(2, (-1, size)).contiguous())


def recurrent(steps: Steps, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the formula step by step; the tests compare the other forms with it."""
    dtype, outs = state.dtype, []
    for step in steps.split(1) if steps.q.shape[2] > 1 else [steps]:
        out, state = _next(step.map(lambda x: x.to(dtype)), state)
        outs.append(out)
    return (torch.cat(outs, 2) if len(outs) > 1 else outs[0]).to(steps.v.dtype), state


def exported(steps: Steps, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `recurrent` as one loop in the program, for any number of steps."""
    names = [name for name, x in zip(Steps._fields, steps, strict=True) if x is not None]

    def step(state: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        one = Steps(**dict(zip(names, (x.unsqueeze(2) for x in inputs), strict=True)))
        out, state = _next(one, state, _read)
        return state.clone(), out.squeeze(2)  # an output must not be a view of another one

    # Contiguous: the export fails for slices of a tensor with symbolic sizes.
    inputs = [x.to(state.dtype).movedim(2, 0).contiguous() for x in steps if x is not None]
    if torch.onnx.is_in_onnx_export():  # which cannot convert a loop that has a backward pass
        state, inputs = state.detach(), [x.detach() for x in inputs]
    state, outs = scan(step, state, inputs, dim=0)
    return outs.movedim(0, 2).to(steps.v.dtype), state


def _read(vector: Tensor, state: Tensor) -> Tensor:
    """``vector @ state`` as a sum: an exported product would fix the batch size."""
    return (vector.mT * state).sum(-2, keepdim=True)


def _next(step: Steps, state: Tensor, read: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> tuple[Tensor, Tensor]:
    """Return the output of one step, (B, H, 1, w), and the next state; ``read`` multiplies a vector by a state."""
    q, k, u, log_decay, beta, a, b = step
    erased = None if a is None else read(a, state)
    if log_decay is not None:
        state = log_decay.exp().mT * state
    if beta is not None:
        u = beta * (u - read(k, state))
    state = state + k.mT * u
    if erased is not None and b is not None:
        state = state + b.mT * erased
    return read(q, state), state


def chunked(steps: Steps, state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the pairs within each chunk as matrices, and a state between chunks; one chunk is the parallel form."""
    q, k, v, log_decay, beta, a, b = steps.chunks(size, state.dtype)
    if beta is not None:  # the delta rule needs the values that the keys read
        ((intra,), (pairs,)), (decayed_q, readers), (writers,), decay = chunk_of([q, k], [k], log_decay)
        v, entering, state = solve(beta * pairs, beta * v, beta * readers, writers, decay, state)
    elif a is not None and b is not None:
        ((intra, corrected), (keys, pairs)), (decayed_q, readers), (decayed_k, writers), decay = chunk_of(
            [q, _earlier(a)], [k, b], log_decay
        )
        readers = torch.cat([a[..., :1, :], readers[..., :-1, :]], -2)  # the first step reads the entering state
        values, pairs = _later(keys) @ v, _later(pairs)
        u, entering, state = solve(-pairs, values, -readers, writers, decay, state, decayed_k.mT @ v)
        out = intra @ v + corrected @ u + decayed_q @ entering
        return out.flatten(2, 3)[:, :, : steps.q.shape[2]].to(steps.v.dtype), state
    else:
        ((intra,),), (decayed_q,), (decayed_k,), decay = chunk_of([q], [k], log_decay)
        entering, state = propagate_state(decayed_k.mT @ v, decay, state)
    out = intra @ v + decayed_q @ entering
    return out.flatten(2, 3)[:, :, : steps.q.shape[2]].to(steps.v.dtype), state


def propagate_state(written: Tensor, log_decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the state before each chunk, (B, H, T, d, w), and after the last, as decayed sums without a loop.

    Args:
        written: (B, H, T, d, w), the term that each chunk adds.
        log_decay: (B | 1, H, T, 1 | d), over each chunk; None without decay.
        state: (B, H, d, w), before the first chunk.
    """
    every = torch.cat([state.unsqueeze(2), written], 2)
    if log_decay is None:
        log_decay = every.new_zeros(1, 1, written.shape[2], 1)
    log_decay = F.pad(log_decay, (0, 0, 1, 0))  # the initial state is not decayed before the first chunk
    factors = segment_sum(log_decay.mT.unsqueeze(-1)).exp().tril()  # (B | 1, H | 1, 1 | d, T + 1, T + 1)
    kinds, (d, w) = log_decay.shape[-1], state.shape[-2:]
    alike = every.flatten(3).unflatten(3, (kinds, d // kinds * w))  # channels with the same decay form one vector
    every = (factors @ alike.transpose(2, 3)).transpose(2, 3).flatten(3).unflatten(3, (d, w))
    return every[:, :, :-1], every[:, :, -1].clone()  # a view would keep all states


def solve(
    matrices: Tensor,
    values: Tensor,
    readers: Tensor,
    writers: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    written: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``u + matrix u = value - reader state`` for the corrections ``u`` of each chunk, one chunk after another.

    Args:
        matrices: (B, H, T, C, C); only the part below the diagonal is used.
        values: (B, H, T, C, w).
        readers: (B, H, T, C, d), the vectors that read the state before the chunk.
        writers: (B, H, T, C, d), the keys of the corrections, decayed to the end of the chunk.
        log_decay: (B | 1, H, T, 1 | d), over each chunk; None without decay.
        state: (B, H, d, w), before the first chunk.
        written: (B, H, T, d, w), what each chunk adds to the state besides the corrections.

    Returns:
        The corrections, (B, H, T, C, w), the state before each chunk, (B, H, T, d, w), and after the last.
    """
    shape, T = matrices.shape[:2], matrices.shape[2]

    def chunks(x: Tensor) -> tuple[Tensor, ...]:  # 3 axes: matmul on more reshapes its arguments in every step
        return x.expand(*shape, *x.shape[2:]).flatten(0, 1).unbind(1)

    decays = [None] * T if log_decay is None else chunks(log_decay.exp().unsqueeze(-1))
    terms = [None] * T if written is None else chunks(written)
    state, corrections, entering = state.flatten(0, 1), [], []
    parts = map(chunks, (unit_lower_inverse(matrices), values, readers, writers.mT))
    for inverse, value, reader, writer, decay, term in zip(*parts, decays, terms, strict=True):
        u = inverse @ torch.baddbmm(value, reader, state, alpha=-1)
        corrections.append(u)
        entering.append(state)
        state = torch.baddbmm(state if decay is None else decay * state, writer, u)
        if term is not None:
            state = state + term
    stacked = (torch.stack(x, 1).unflatten(0, shape) for x in (corrections, entering))
    return *stacked, state.unflatten(0, shape)


def _earlier(x: Tensor) -> Tensor:
    """Move the vectors (..., C, d) one step earlier: a step that reads the state before it is a query of that state."""
    return F.pad(x[..., 1:, :], (0, 0, 0, 1))


def _later(scores: Tensor) -> Tensor:
    """Move the rows (..., C, C) one step later, to the steps whose vectors `_earlier` moved."""
    return F.pad(scores[..., :-1, :], (0, 0, 1, 0))
