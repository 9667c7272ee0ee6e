"""Decay within a chunk: between each query and key, from the start of the chunk, and to its end.

Only the decays of the steps in between are multiplied, or their logarithms added. There are no quotients and no
differences of longer sums: strong decay loses no precision, and a decay of zero (-inf) gives zeros, not NaN.

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

    Blocks of steps are merged in pairs. Queries are multiplied by the decay from the start of their block, keys by the
    decay to its end, so that their products are the scores between two blocks. Every pair of steps is computed once,
    when their blocks are merged. (Yang et al. 2023, section 4.3, split a chunk once, into blocks that are then computed
    pair by pair.)
    """
    C = q.shape[-2]
    whole = 1 << (C - 1).bit_length()
    if whole > C:
        q, k, log_decay = (F.pad(x, (0, 0, 0, whole - C)) for x in (q, k, log_decay))
    intra = (q * k).sum(-1)[..., None, None]  # of blocks of one step
    decay = log_decay.exp().unsqueeze(-2)  # (..., blocks, 1, d), over each block
    q, k = q.unsqueeze(-2) * decay, k.unsqueeze(-2)  # (..., blocks, steps, d)
    while decay.shape[-3] > 1:
        (q1, q2), (k1, k2), (first, second), (earlier, later) = (
            x.unflatten(-3, (-1, 2)).unbind(-3) for x in (q, k, decay, intra)
        )
        scores = q2 @ k1.mT if q1.shape[-2] > 1 else (q2 * k1).sum(-1, keepdim=True)
        top = F.pad(earlier, (0, earlier.shape[-1]))
        intra = torch.cat([top, torch.cat([scores, later], -1)], -2)
        q, k, decay = torch.cat([q1, q2 * first], -2), torch.cat([k1 * second, k2], -2), first * second
    intra, q, k = (x.squeeze(-3)[..., :C, :] for x in (intra, q, k))
    return Chunk(intra[..., :C], q, k, log_decay.sum(-2))
