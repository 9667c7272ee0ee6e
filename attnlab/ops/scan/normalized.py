"""The attention matrix of linear attention: products of positive features, normalized over the keys.

Axes: B batch, H heads, N queries, M keys, d width of a feature vector, w width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask, SegmentMask
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan
from attnlab.utils.tracing import can_inspect_values, full_precision


class NormalizedScan(AttentionMap):
    """``q_i·k_j / Σ_j q_i·k_j`` over the allowed keys j, never materialized; a row without such keys is zero.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", sections 3.2 (all keys) and 3.3 (causal).

    Args:
        q: features of the queries, non-negative, (B, H, N, d), in float32 or float64.
        k: features of the keys, (B, H, M, d).
        mask: any conjunction of causal, padding and segment masks.

    Raises:
        ValueError: for a segment mask with another number of queries than keys.
    """

    def __init__(self, q: Tensor, k: Tensor, mask: BoundMask | None) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.mask, self.causal = mask, False
        self.segments: Tensor | None = None
        if mask is not None:
            for real in mask.real_keys(k.shape[2]):
                k = k.masked_fill(~real[:, None, :, None], 0.0)
            for rule in mask.conjuncts:
                if isinstance(rule, SegmentMask):
                    self._add_segments(rule.ids[..., : mask.first + mask.keys])
                elif not rule.is_padding:
                    self.causal = True
        self.q, self.k = q, k

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        if dropout:
            raise ValueError(f"linear attention has no attention weights to drop; dropout must be 0, not {dropout}")
        return _normalized(self._sums(self._with_ones(values)), values)

    def step(self, values: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Continue a causal sequence: return the output, and the state after its last token.

        Args:
            values: (B, H, N, w).
            state: (B, H, d, w + 1), the sums over the earlier tokens; None for the first.

        Raises:
            ValueError: for a document that another one interrupts (checked on a CPU, outside of a trace).
        """
        log_decay = None if self.segments is None else self._resets(self._first_tokens(self.segments))
        sums, state = linear_scan(self.q, self.k, self._with_ones(values), log_decay=log_decay, state=state)
        return _normalized(sums, values), state

    def _with_ones(self, values: Tensor) -> Tensor:
        """The values with a column of ones, whose sum is the normalizer."""
        values = values.to(self.q.dtype).expand(*self.k.shape[:2], -1, -1)
        return F.pad(values, (0, 1), value=1.0)

    def _sums(self, values: Tensor) -> Tensor:
        if self.segments is not None:
            return self._segment_sums(values, self.segments)
        if self.causal:
            return linear_scan(self.q, self.k, values)[0]
        with full_precision(values.device):  # sums over all tokens keep their precision
            return self.q @ (self.k.mT @ values)

    def _segment_sums(self, values: Tensor, ids: Tensor) -> Tensor:
        """One scan over the tokens ordered by segment, which restarts at the first token of each."""
        ids = ids.expand(self.q.shape[0], -1)
        order = ids.argsort(dim=-1, stable=True)
        q, k, v = (_gathered(t, order) for t in (self.q, self.k, values))
        N, changes = ids.shape[1], ids.gather(1, order).diff(dim=-1) != 0
        out = linear_scan(q, k, v, log_decay=self._resets(F.pad(changes, (1, 0), value=True)[:, :N]))[0]
        if not self.causal:
            resets = self._resets(F.pad(changes, (0, 1), value=True)[:, :N].flip(-1))
            later = linear_scan(q.flip(2), k.flip(2), v.flip(2), log_decay=resets)[0].flip(2)
            out = out + later - (q * k).sum(-1, keepdim=True) * v  # the token itself is in both
        return _gathered(out, order.argsort(dim=-1))

    def _first_tokens(self, ids: Tensor) -> Tensor:
        """Which of the last N tokens are the first of their segment, (1 | B, N)."""
        if can_inspect_values(ids):
            for row in ids:
                runs = row.unique_consecutive()
                if len(runs.unique()) < len(runs):
                    raise ValueError(
                        "with a cache, a document must not be interrupted by another one; "
                        "decode each document with its own cache"
                    )
        return F.pad(ids.diff(dim=-1) != 0, (1, 0), value=True)[:, ids.shape[1] - self.shape[2] :]

    def _resets(self, first: Tensor) -> Tensor:
        """The logarithm of the decay, (B, H, N): -inf at the first token of a segment."""
        decay = torch.zeros_like(first, dtype=self.q.dtype).masked_fill(first, -torch.inf)
        return decay.unsqueeze(1).expand(*self.q.shape[:2], -1)

    def _add_segments(self, ids: Tensor) -> None:
        if self.shape[2] != self.shape[3]:
            raise ValueError(
                "documents() needs as many queries as keys in linear attention, not "
                f"{self.shape[2]} and {self.shape[3]}"
            )
        ids = ids.unsqueeze(0) if ids.dim() == 1 else ids
        if self.segments is not None:  # both masks must agree: one value per pair of ids
            ids = (ids - ids.min()) * (self.segments.max() - self.segments.min() + 1) + self.segments
        self.segments = ids

    def _rows(self, rows: Tensor) -> Tensor:
        scores = self.q[:, :, rows] @ self.k.mT
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask.tile(rows, slice(0, self.mask.keys)), 0.0)
        return _normalized(torch.cat([scores, scores.sum(-1, keepdim=True)], -1), self._like)


def _normalized(sums: Tensor, like: Tensor) -> Tensor:
    """Divide all columns by the last one; zero where no key is allowed.

    A smaller divisor than the square root of the smallest normal number would overflow in the gradient.
    """
    smallest = torch.finfo(sums.dtype).tiny ** 0.5
    return (sums[..., :-1] / sums[..., -1:].clamp_min(smallest)).to(like.dtype)


def _gathered(x: Tensor, order: Tensor) -> Tensor:
    return x.take_along_dim(order[:, None, :, None], 2)
