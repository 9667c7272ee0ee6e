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
    """What happens at each step.

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
        """Parts of these lengths; one gradient is made of theirs, not one as long as the whole for each."""
        parts = (repeat(None) if x is None else x.split(lengths, 2) for x in self)
        return [Steps(*part) for part in zip(*parts, strict=False)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """``change`` applied to all that is there."""
        gates = (x if x is None else change(x) for x in (self.log_decay, self.beta))
        return Steps(change(self.q), change(self.k), change(self.v), *gates)

    def chunks(self, size: int, dtype: torch.dtype) -> Steps:
        """(B, H, T, C, ...) for (B, H, N, ...); the last chunk is filled up with steps that change nothing."""
        if torch.compiler.is_exporting():  # one chunk: a length that is compared with multiples of a chunk is not free
            return self.map(lambda x: x.to(dtype).unsqueeze(2))
        missing = -self.q.shape[2] % size
        wide = self.map(lambda x: x.to(dtype))
        if torch.compiler.is_compiling() or missing:  # compiled, one graph for every length
            wide = wide.map(lambda x: F.pad(x, (0, 0, 0, missing)))
        # Contiguous once, or every product that takes it makes a copy, and keeps it for the backward pass.
        return wide.map(lambda x: x.unflatten(2, (-1, size)).contiguous())


def recurrent(steps: Steps, state: Tensor) -> tuple[Tensor, Tensor]:
    """Step by step, as the formula says: the truth that the other forms are held to."""
    outs = []
    for step in steps.split(1):
        q, k, u, log_decay, beta = step.map(lambda x: x.to(state.dtype))  # noqa: B023  it is called at once
        if log_decay is not None:
            state = log_decay.exp().mT * state
        if beta is not None:
            u = beta * (u - k @ state)
        state = state + k.mT * u
        outs.append(q @ state)
    return torch.cat(outs, 2).to(steps.v.dtype), state


def chunked(steps: Steps, state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """All pairs within a chunk as matrices, and from chunk to chunk the state; one chunk of N is the parallel form."""
    q, k, v, log_decay, beta = steps.chunks(size, state.dtype)
    if beta is None:
        chunk = chunk_of(q, k, log_decay)
        entering, state = propagate_state(chunk.decayed_k.mT @ v, chunk.log_decay, state)
    else:  # the delta rule corrects what the keys read
        both = chunk_of(torch.stack([q, k]), k, log_decay)
        (intra, pairs_of_keys), (decayed_q, reading_keys) = both.intra.unbind(0), both.decayed_q.unbind(0)
        chunk = both._replace(intra=intra, decayed_q=decayed_q)
        v, entering, state = solve_delta_rule(pairs_of_keys, reading_keys, v, beta, chunk, state)
    out = chunk.intra @ v + chunk.decayed_q @ entering
    return out.flatten(2, 3)[:, :, : steps.q.shape[2]].to(steps.v.dtype), state


def propagate_state(written: Tensor, log_decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """From chunk to chunk, without a loop: every chunk's state is a sum over what was written before it.

    Args:
        written: (B, H, T, d, w), what each chunk adds.
        log_decay: (B | 1, H, T, 1 | d), over each chunk; None where nothing decays.
        state: (B, H, d, w), before the first.

    Returns:
        The state before each chunk, (B, H, T, d, w), and after the last.
    """
    every = torch.cat([state.unsqueeze(2), written], 2)
    if log_decay is None:
        log_decay = every.new_zeros(1, 1, written.shape[2], 1)
    log_decay = F.pad(log_decay, (0, 0, 1, 0))  # the state is there at once
    factors = segment_sum(log_decay.mT.unsqueeze(-1)).exp().tril()  # (B | 1, H | 1, 1 | d, T + 1, T + 1)
    kinds, (d, w) = log_decay.shape[-1], state.shape[-2:]
    alike = every.flatten(3).unflatten(3, (kinds, d // kinds * w))  # what decays alike is one vector
    every = (factors @ alike.transpose(2, 3)).transpose(2, 3).flatten(3).unflatten(3, (d, w))
    return every[:, :, :-1], every[:, :, -1].clone()  # a view of the last would keep all


def solve_delta_rule(
    intra: Tensor, decayed_q: Tensor, v: Tensor, beta: Tensor, chunk: Chunk, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The delta rule: each chunk's corrections ``u`` solve ``u + beta intra u = beta (v - decayed_q state)``.

    Args:
        intra: (B, H, T, C, C), what a key reads of each key of its chunk; the solver leaves out what is not before it.
        decayed_q: (B, H, T, C, d), what the keys read of the state before the chunk.
        v: (B, H, T, C, w).
        beta: (B, H, T, C, 1).
        chunk: how the corrections are written.
        state: (B, H, d, w), before the first chunk.

    Returns:
        The corrections, (B, H, T, C, w), the state before each chunk, (B, H, T, d, w), and after the last.
    """
    earlier, wanted, decayed_q = beta * intra, beta * v, beta * decayed_q
    decays = repeat(None) if chunk.log_decay is None else chunk.log_decay.exp().unsqueeze(-1).unbind(2)
    corrections, entering = [], []
    for matrix, value, reader, writer, decay in zip(
        *(x.unbind(2) for x in (earlier, wanted, decayed_q, chunk.decayed_k)), decays, strict=False
    ):
        u = torch.linalg.solve_triangular(matrix, value - reader @ state, upper=False, unitriangular=True)
        corrections.append(u)
        entering.append(state)
        state = (state if decay is None else decay * state) + writer.mT @ u
    return torch.stack(corrections, 2), torch.stack(entering, 2), state
