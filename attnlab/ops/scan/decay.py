"""Decay within a chunk: between each query and key, from the start of the chunk, and to its end.

Only sums of logarithms over the steps in between are exponentiated. They are never positive and never differences of
longer sums: strong decay loses no precision, and a decay of zero (-inf) gives zeros, not NaN.

Axes: C steps of a chunk, d channels of a key; leading axes are batched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Chunk(NamedTuple):
    """The products of queries, keys and decays in a chunk.

    Args:
        intra: (..., C, C), the score of each query and key, ``Σ_i q_ti k_si decay_i(s → t)``; zero for later keys.
        decayed_q: (..., C, d), the queries times the decay from the start of the chunk, which read the state before it.
        decayed_k: (..., C, d), the keys times the decay to the end of the chunk, which write the state after it.
        log_decay: (..., 1 | d), over the whole chunk; None without decay.
    """

    intra: Tensor
    decayed_q: Tensor
    decayed_k: Tensor
    log_decay: Tensor | None


def chunk_of(q: Tensor, k: Tensor, log_decay: Tensor | None) -> Chunk:
    """Return the products of a chunk of queries and keys (..., C, d), with a decay (..., C, 1 | d) or none."""
    if log_decay is None:
        return Chunk(_lower(q @ k.mT), q, k, None)
    if log_decay.shape[-1] == 1:
        return _scalar(q, k, log_decay)
    return _vector(q, k, log_decay)


def segment_sum(log_decay: Tensor) -> Tensor:
    """``Σ_{s < i ≤ t} log_decay_i`` for every two steps: (..., C, 1) to (..., C, C), zero for s ≥ t."""
    return log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2]).tril(-1).cumsum(-2)


def _scalar(q: Tensor, k: Tensor, log_decay: Tensor) -> Chunk:
    """One decay for all channels: a factor of each score (Dao & Gu 2024, section 6)."""
    steps, since = segment_sum(log_decay), log_decay.cumsum(-2)
    intra = _lower(q @ k.mT * steps.exp())
    return Chunk(intra, q * since.exp(), k * steps[..., -1, :, None].exp(), since[..., -1, :])


def _lower(scores: Tensor) -> Tensor:
    """Set later keys to zero, in place where it is possible: these scores are needed nowhere else."""
    return scores.tril() if torch._C._are_functorch_transforms_active() else scores.tril_()


def _vector(q: Tensor, k: Tensor, log_decay: Tensor) -> Chunk:
    """One decay per channel: not a factor of the score, but it can be split at any step in between.

    Blocks are merged in pairs: the queries of the later block are multiplied by the decay since the boundary, the keys
    of the earlier block by the decay up to it. Every pair of steps is computed once, when their blocks are merged.
    (Yang et al. 2023, section 4.3, split a chunk once, into blocks that are then computed pair by pair.)
    """
    C = q.shape[-2]
    whole = 1 << (C - 1).bit_length()
    q, k, log_decay = (F.pad(x, (0, 0, 0, whole - C)) for x in (q, k, log_decay))
    since, until, total = log_decay, torch.zeros_like(log_decay), log_decay
    intra = (q * k).sum(-1)[..., None, None]
    size = 1
    while size < whole:
        decayed_q = _halves(q, size)[1] * _halves(since, size)[1].exp()
        decayed_k = _halves(k, size)[0] * _halves(until, size)[0].exp()
        earlier, later = intra.unflatten(-3, (-1, 2)).unbind(-3)
        top = torch.cat([earlier, torch.zeros_like(earlier)], -1)
        intra = torch.cat([top, torch.cat([decayed_q @ decayed_k.mT, later], -1)], -2)
        first, second = total.unflatten(-2, (-1, 2)).unbind(-2)
        since = _add(since, size, torch.zeros_like(first), first)
        until = _add(until, size, second, torch.zeros_like(second))
        total = first + second
        size *= 2
    intra, decayed_q, decayed_k = intra.squeeze(-3), q * since.exp(), k * until.exp()
    return Chunk(intra[..., :C, :C], decayed_q[..., :C, :], decayed_k[..., :C, :], total.squeeze(-2))


def _halves(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return the first and the second half of every block of twice this size, (..., blocks, size, d) each."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)


def _add(x: Tensor, size: int, first: Tensor, second: Tensor) -> Tensor:
    """Return ``x`` plus (..., blocks, d) for all steps of the first half of a block, and of the second half."""
    added = torch.stack([first, second], -2).unsqueeze(-2)
    return (x.unflatten(-2, (-1, 2, size)) + added).flatten(-4, -2)
