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
        intra: for each kind of query, and each kind of key, the scores (..., C, C): ``Σ_i q_ti k_si decay_i(s → t)``,
            zero for later keys.
        decayed_q: for each kind, (..., C, d): the queries times the decay from the start of the chunk, which read the
            state before it.
        decayed_k: for each kind, (..., C, d): the keys times the decay to the end of the chunk, which write the state
            after it.
        log_decay: (..., 1 | d), over the whole chunk; None without decay.
    """

    intra: list[list[Tensor]]
    decayed_q: list[Tensor]
    decayed_k: list[Tensor]
    log_decay: Tensor | None


def chunk_of(queries: list[Tensor], keys: list[Tensor], log_decay: Tensor | None) -> Chunk:
    """Return the products of a chunk.

    Args:
        queries: one or several kinds, (..., C, d).
        keys: one or several kinds, (..., C, d).
        log_decay: (..., C, 1 | d), or None.
    """
    if log_decay is None:
        return Chunk([[_lower(q @ k.mT) for k in keys] for q in queries], queries, keys, None)
    if log_decay.shape[-1] == 1:
        return _scalar(queries, keys, log_decay)
    vector = _vector(torch.stack(queries).unsqueeze(1), torch.stack(keys).unsqueeze(0), log_decay)
    intra, decayed_q, decayed_k = vector
    parts = [list(scores.unbind(0)) for scores in intra.unbind(0)]
    return Chunk(parts, list(decayed_q.squeeze(1)), list(decayed_k.squeeze(0)), log_decay.sum(-2))


def segment_sum(log_decay: Tensor) -> Tensor:
    """``Σ_{s < i ≤ t} log_decay_i`` for every two steps: (..., C, 1) to (..., C, C), zero for s ≥ t."""
    return log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2]).tril(-1).cumsum(-2)


def _scalar(queries: list[Tensor], keys: list[Tensor], log_decay: Tensor) -> Chunk:
    """One decay for all channels: a factor of each score (Dao & Gu 2024, section 6)."""
    steps, since = segment_sum(log_decay), log_decay.cumsum(-2)
    factor, first, last = steps.exp(), since.exp(), steps[..., -1, :, None].exp()
    intra = [[_lower(q @ k.mT * factor) for k in keys] for q in queries]
    return Chunk(intra, [q * first for q in queries], [k * last for k in keys], since[..., -1, :])


def _lower(scores: Tensor) -> Tensor:
    """Set later keys to zero, in place where it is possible: these scores are needed nowhere else."""
    return scores.tril() if torch._C._are_functorch_transforms_active() else scores.tril_()


def _vector(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    return intra[..., :C], q, k
