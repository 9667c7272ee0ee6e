"""The recurrence step by step, and chunk by chunk.

    S_t = decay_t S_{t-1} + k_t u_tᵀ
    o_t = S_tᵀ q_t

``u_t`` is ``v_t``, or ``beta_t (v_t - (decay_t S_{t-1})ᵀ k_t)`` under the delta rule.

Axes: B batch, H heads, N steps, d width of a key, w width of a value, T chunks, C steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.ops.scan.decay import Chunk, chunk_of, segment_sum


class Steps(NamedTuple):
    """The inputs of each step.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, w).
        log_decay: (B | 1, H, N, 1 | d), or None.
        beta: (B, H, N, 1), or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None

    def split(self, lengths: int | list[int]) -> list[Steps]:
        """Return parts of these lengths; split, because the gradient of a slice is as large as the whole."""
        parts = (repeat(None) if x is None else x.split(lengths, 2) for x in self)
        return [Steps(*part) for part in zip(*parts, strict=False)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """Return ``change`` of each tensor."""
        gates = (x if x is None else change(x) for x in (self.log_decay, self.beta))
        return Steps(change(self.q), change(self.k), change(self.v), *gates)

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
    outs = []
    for step in steps.split(1):
        q, k, u, log_decay, beta = step.map(lambda x: x.to(state.dtype))  # noqa: B023  called immediately
        if log_decay is not None:
            state = log_decay.exp().mT * state
        if beta is not None:
            u = beta * (u - k @ state)
        state = state + k.mT * u
        outs.append(q @ state)
    return torch.cat(outs, 2).to(steps.v.dtype), state


def chunked(steps: Steps, state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Compute the pairs within each chunk as matrices, and a state between chunks; one chunk is the parallel form."""
    q, k, v, log_decay, beta = steps.chunks(size, state.dtype)
    if beta is None:
        chunk = chunk_of(q, k, log_decay)
        entering, state = propagate_state(chunk.decayed_k.mT @ v, chunk.log_decay, state)
    else:  # the delta rule needs the values that the keys read
        both = chunk_of(torch.stack([q, k]), k, log_decay)
        (intra, pairs_of_keys), (decayed_q, reading_keys) = both.intra.unbind(0), both.decayed_q.unbind(0)
        chunk = both._replace(intra=intra, decayed_q=decayed_q)
        v, entering, state = solve_delta_rule(pairs_of_keys, reading_keys, v, beta, chunk, state)
    out = chunk.intra @ v + chunk.decayed_q @ entering
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


def solve_delta_rule(
    intra: Tensor, decayed_q: Tensor, v: Tensor, beta: Tensor, chunk: Chunk, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``u + beta intra u = beta (v - decayed_q state)`` for the corrections ``u`` of each chunk.

    Args:
        intra: (B, H, T, C, C), the scores of the keys among themselves; only those of earlier keys are used.
        decayed_q: (B, H, T, C, d), the keys that read the state before the chunk.
        v: (B, H, T, C, w).
        beta: (B, H, T, C, 1).
        chunk: the products with which the corrections are written.
        state: (B, H, d, w), before the first chunk.

    Returns:
        The corrections, (B, H, T, C, w), the state before each chunk, (B, H, T, d, w), and after the last.
    """
    matrices, values, readers = beta * intra, beta * v, beta * decayed_q
    decays = repeat(None) if chunk.log_decay is None else chunk.log_decay.exp().unsqueeze(-1).unbind(2)
    corrections, entering = [], []
    for matrix, value, reader, writer, decay in zip(
        *(x.unbind(2) for x in (matrices, values, readers, chunk.decayed_k)), decays, strict=False
    ):
        u = torch.linalg.solve_triangular(matrix, value - reader @ state, upper=False, unitriangular=True)
        corrections.append(u)
        entering.append(state)
        state = (state if decay is None else decay * state) + writer.mT @ u
    return torch.stack(corrections, 2), torch.stack(entering, 2), state
