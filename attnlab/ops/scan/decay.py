"""Decay inside of a chunk: what reaches a query from each key, from the chunk's beginning, and to its end.

Only sums of logarithms over steps that lie in between are exponentiated. They are never positive, and nothing is
subtracted from a longer sum: strong decay costs no digits, and a full forget (-inf) gives zeros, not NaN.

Axes: C steps of a chunk, d channels of a key; what stands before them is batched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Chunk(NamedTuple):
    """What a chunk does, apart from its values.

    Args:
        intra: (..., C, C), what a query takes from each key, ``Σ_i q_ti k_si decay_i(s → t)``; zero ahead.
        decayed_q: (..., C, d), the queries times the decay from the chunk's beginning: they read the state before it.
        decayed_k: (..., C, d), the keys times the decay until the chunk's end: they write the state after it.
        log_decay: (..., 1 | d), over the whole chunk; None where nothing decays.
    """

    intra: Tensor
    decayed_q: Tensor
    decayed_k: Tensor
    log_decay: Tensor | None


def chunk_of(q: Tensor, k: Tensor, log_decay: Tensor | None) -> Chunk:
    """A chunk of queries and keys (..., C, d), under a decay of (..., C, 1 | d) or none."""
    if log_decay is None:
        return Chunk((q @ k.mT).tril(), q, k, None)
    if log_decay.shape[-1] == 1:
        return _scalar(q, k, log_decay)
    return _vector(q, k, log_decay)


def segment_sum(log_decay: Tensor) -> Tensor:
    """``Σ_{s < i ≤ t} log_decay_i`` for every two steps: (..., C, 1) gives (..., C, C), zero ahead and at s = t."""
    return log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2]).tril(-1).cumsum(-2)


def _scalar(q: Tensor, k: Tensor, log_decay: Tensor) -> Chunk:
    """One decay for all channels is a factor of each pair (Dao & Gu 2024, section 6)."""
    steps, since = segment_sum(log_decay), log_decay.cumsum(-2)
    intra = (q @ k.mT * steps.exp()).tril()
    return Chunk(intra, q * since.exp(), k * steps[..., -1, :, None].exp(), since[..., -1, :])


def _vector(q: Tensor, k: Tensor, log_decay: Tensor) -> Chunk:
    """A decay for each channel is no factor of a pair, but it can be parted at any step that lies in between.

    Blocks are joined two by two: the later block's queries carry the decay since the step where the two meet, the
    earlier block's keys the decay until there. Every pair of steps is met once, in the blocks in which they part.
    (Yang et al. 2023, section 4.3, part a chunk once, into blocks that are then computed pair by pair.)
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
    """The first and the second half of every block of twice this size, (..., blocks, size, d) each."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)


def _add(x: Tensor, size: int, first: Tensor, second: Tensor) -> Tensor:
    """``x`` with (..., blocks, d) added to all steps of a block's first half, and of its second."""
    added = torch.stack([first, second], -2).unsqueeze(-2)
    return (x.unflatten(-2, (-1, 2, size)) + added).flatten(-4, -2)
