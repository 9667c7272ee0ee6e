"""Softmax attention in parts: what a query cannot reach is never computed. Every part is a fused kernel's work.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask

ROWS = 64
"""Queries a tile; more of them reach more keys that most of them may not look at."""


def windowed(q: Tensor, k: Tensor, v: Tensor, mask: BoundMask, bias: Tensor | None) -> Tensor:
    """A mask of limited reach: rows by tiles, each with the keys that it can reach; O(N · reach).

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        mask: its ``reach`` says what is left out.
        bias: broadcastable to (B, H, N, M).

    Source: Beltagy et al. 2020, "Longformer", section 3.1, for the pattern.
    """
    back, ahead = mask.mask.reach
    assert back is not None
    assert ahead is not None
    parts = []
    for part in _slices(q.shape[2], max(ROWS, (back + ahead + 1) // 4)):
        keys = mask.seen(part)
        parts.append(
            _attend(q[:, :, part], k[:, :, keys], v[:, :, keys], mask.tile(part, keys), _cut(bias, part, keys))
        )
    return _joined(parts, 2)


def triangular(q: Tensor, k: Tensor, v: Tensor, parts: int = 4) -> Tensor:
    """Causal attention in a few parts: the keys ahead of a part are left out, where a kernel would not notice."""
    N = q.shape[2]
    done = []
    for rows in _slices(N, -(-N // parts)):
        # A part's own triangle, aligned at its end.
        permitted = torch.ones(rows.stop - rows.start, rows.stop, dtype=torch.bool, device=q.device).tril(rows.start)
        done.append(_attend(q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], permitted))
    return _joined(done, 2)


def itemwise(q: Tensor, k: Tensor, v: Tensor, rest: BoundMask | None, bias: Tensor | None, keys: list[slice]) -> Tensor:
    """An item at a time, with its real keys alone.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        rest: what else the mask says.
        bias: broadcastable to (B, H, N, M).
        keys: the real keys of every item.
    """
    everyone = slice(0, q.shape[2])
    done = []
    for b, own in enumerate(keys):
        item = slice(b, b + 1)
        args = q[item], k[item, :, own], v[item, :, own]
        if rest is not None and rest.is_causal and bias is None and own.start == 0:
            done.append(F.scaled_dot_product_attention(*args, is_causal=True))
            continue
        permitted = None if rest is None else _of_item(rest.tile(everyone, own), b)
        added = _cut(bias, everyone, own)
        done.append(_attend(*args, permitted, None if added is None else _of_item(added, b)))
    return _joined(done, 0)


def segmentwise(
    q: Tensor, k: Tensor, v: Tensor, rest: BoundMask | None, bias: Tensor | None, segments: list[slice]
) -> Tensor:
    """Packed sequences, one after the other.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, d).
        rest: what else the mask says.
        bias: broadcastable to (B, H, N, N).
        segments: the rows of every sequence.
    """
    done = []
    for own in segments:
        args = q[:, :, own], k[:, :, own], v[:, :, own]
        if rest is not None and rest.is_causal and bias is None:
            done.append(F.scaled_dot_product_attention(*args, is_causal=True))
        else:
            done.append(_attend(*args, None if rest is None else rest.tile(own, own), _cut(bias, own, own)))
    return _joined(done, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, permitted: Tensor | None, bias: Tensor | None = None) -> Tensor:
    if not k.shape[2]:
        return torch.zeros_like(q)  # nothing to look at
    return F.scaled_dot_product_attention(q, k, v, attn_mask=additive(permitted, bias, q.dtype))


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """The parts in one tensor, laid out as the kernels lay out theirs, (B, N, H, d): joining heads is then free."""
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[axis]).transpose(1, 2)


def additive(permitted: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask and a bias as the one tensor that the fused kernel takes."""
    if bias is None:
        return permitted
    bias = bias.to(dtype)
    return bias if permitted is None else bias.masked_fill(~permitted, -torch.inf)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def _cut(bias: Tensor | None, queries: slice, keys: slice) -> Tensor | None:
    if bias is None:
        return None
    bias = bias[(None,) * (4 - bias.dim())]
    rows = slice(None) if bias.shape[-2] == 1 else queries
    return bias[..., rows, slice(None) if bias.shape[-1] == 1 else keys]


def _of_item(tensor: Tensor, b: int) -> Tensor:
    return tensor if len(tensor) == 1 else tensor[b : b + 1]
