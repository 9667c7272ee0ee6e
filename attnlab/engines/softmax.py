"""Softmax attention: the fused computation, and the map that it never writes down.

Axes: B batch, H heads, N queries, M keys, d head_dim. A mechanism with one head may leave H away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.engines.dropout import dropout_attention
from attnlab.engines.paths import Path, may_split, tell
from attnlab.engines.tiles import ROWS, additive, itemwise, segmentwise, triangular, windowed
from attnlab.masks import BoundMask

SHORT = 128
"""Below this length a kernel is through before anything could be saved."""

MIDDLING = 768
"""Up to here the causal kernel computes most of what it then forbids."""

FUSED = Path("fused", "every key may be looked at")

CHEAP = 2**15
"""Weights an item below which PyTorch's own random numbers cost nothing that matters."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None = None,
    bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q kᵀ / √d + bias) v`` over the permitted keys, by PyTorch's fused kernels.

    Args:
        q: (B, H, N, d), or (B, N, d) for one head.
        k: (B, H, M, d).
        v: (B, H, M, d).
        mask: who may look at whom.
        bias: added to the scores, broadcastable to (B, H, N, M).
        dropout: the probability of dropping a weight; 0 outside of training.

    Returns:
        The shape of ``q``; zeros in a row that may look at nothing.

    Source: Vaswani et al. 2017, section 3.2.1; Dao et al. 2022 for the kernel that never writes the map.
    """
    if q.dim() == 3:  # the fused kernels want a head axis
        one = softmax_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), mask, bias, dropout=dropout)
        return one.squeeze(1)
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    if torch.compiler.is_compiling():  # one graph for every length: nothing may depend on what the tensors hold
        return _whole(q, k, v, mask, bias, dropout)
    if mask is not None and mask.is_open:
        mask = None
    path, compute = _choose(q, k, v, mask, bias, dropout)
    tell(path)
    return compute()


def softmax_weights(q: Tensor, k: Tensor, mask: BoundMask | None = None, bias: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / √d + bias)`` written down: (B, H, N, M), zero where a query may not look.

    Takes what `softmax_attention` takes. A row that may look at nothing is zero.
    """
    if q.dim() == 3:
        return softmax_weights(q.unsqueeze(1), k.unsqueeze(1), mask, bias)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return masked_softmax(scores if bias is None else scores + bias.to(q.dtype), mask)


def masked_softmax(scores: Tensor, mask: BoundMask | None = None) -> Tensor:
    """``softmax(scores)`` over the permitted keys: (B, H, N, M), zero where a query may not look.

    A score of -inf is not permitted either. A row without any permitted key is zero, and its gradient too.
    """
    forbidden = scores == -torch.inf
    if mask is not None:
        forbidden = forbidden | ~mask.tensor()
    # The most negative finite number: -inf would make an empty row NaN on the way, forward and backward.
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(forbidden, 0.0)


def _choose(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Tensor | None, dropout: float
) -> tuple[Path, Callable[[], Tensor]]:
    """The fastest way that gives exactly what is asked for. Thresholds are measured: ``benchmarks``, part engines."""
    N, M = q.shape[2], k.shape[2]
    by_parts = (mask is not None or dropout > 0) and may_split(q)
    if dropout and by_parts and q.shape[1] * N * M >= CHEAP and (bias is None or not bias.requires_grad):
        permitted = None if mask is None else mask.tensor()
        return Path("dropout", f"dropout {dropout:g} in training on a CPU; two random bytes a weight"), partial(
            dropout_attention, q, k, v, permitted, bias, dropout
        )
    if mask is not None and by_parts and not dropout and (found := _parts(q, k, v, mask, bias)):
        return found
    if bias is None and mask is None:
        path = FUSED
    elif bias is None and mask is not None and mask.is_causal:
        path = Path("causal", "a plain triangle, for which the kernel needs no matrix")
    else:
        given = [*(["a bias"] if bias is not None else []), *([f"{mask.mask}"] if mask is not None else [])]
        path = Path("matrix", f"{' and '.join(given)}, as a matrix of {N} queries and {M} keys")
    return path, partial(_whole, q, k, v, mask, bias, dropout)


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Tensor | None, dropout: float) -> Tensor:
    """One call of the fused kernel."""
    if bias is None and (mask is None or mask.is_causal):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=mask is not None)
    matrix = additive(None if mask is None else mask.tensor(), bias, q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=matrix, dropout_p=dropout)


def _parts(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask, bias: Tensor | None
) -> tuple[Path, Callable[[], Tensor]] | None:
    """A way that leaves out what may not be looked at; None where there is too little of it."""
    B, N, M = q.shape[0], q.shape[2], k.shape[2]
    if M < SHORT:
        return None
    back, ahead = mask.mask.reach
    if back is not None and ahead is not None and 1.5 * (back + ahead + 1 + min(N, ROWS)) <= M:
        why = f"{mask.mask} reaches {back} back and {ahead} ahead of {M} keys"
        return Path("window", why), partial(windowed, q, k, v, mask, bias)
    if N < SHORT or mask.first:
        return None
    for rule in mask.mask.factors:
        if mask.offset == 0 and N == M and (segments := rule.segments(N)) and 1 < len(segments) <= N // 4:
            why = f"{len(segments)} sequences packed in one row"
            return Path("segments", why), partial(segmentwise, q, k, v, mask.without(rule), bias, segments)
        spans = rule.spans(M)
        if spans is not None and len(spans) == B:
            real = sum(span.stop - span.start for span in spans)
            if real <= 0.9 * B * M:
                why = f"{real / (B * M):.0%} of the keys are real; an item at a time leaves out the rest"
                return Path("items", why), partial(itemwise, q, k, v, mask.without(rule), bias, spans)
    if bias is None and mask.is_causal and N <= MIDDLING:
        return Path("triangle", f"causal, {N} long: four parts leave out most of what is ahead"), partial(
            triangular, q, k, v
        )
    return None
