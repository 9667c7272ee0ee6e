"""The attention matrix of linear attention: products of positive features, normalized over the keys.

Axes: B batch, H heads, N queries, M keys, d width of a feature vector, w width of a value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask, SegmentMask
from attnlab.ops.arithmetic import MAX_LISTED, Arithmetic, Cell, other_keys
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan
from attnlab.ops.scan.states import StateTrace
from attnlab.utils.tracing import can_inspect_values, full_precision, widest_dtype

LOWEST = -(2.0**14)
"""The smallest ``log_scale``: the keys of a row whose scales are all below it count equally."""


class NormalizedScan(AttentionMap):
    """``q_i·k_j / Σ_j q_i·k_j`` over the allowed keys j, never materialized; a row without such keys is zero.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", sections 3.2 (all keys) and 3.3 (causal).

    Args:
        q: features of the queries, non-negative, (B, H, N, d), in float32 or float64.
        k: features of the keys, (B, H, M, d).
        mask: any conjunction of causal, padding and segment masks.
        log_scale: (B, H, M); the features of a key are ``exp(log_scale_j) k_j``, which may be far from 1: sums are kept
            relative to the largest scale of the allowed keys so far, which the output does not depend on.

    Raises:
        ValueError: for a segment mask with another number of queries than keys.
    """

    implied = True

    def __init__(self, q: Tensor, k: Tensor, mask: BoundMask | None, log_scale: Tensor | None = None) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.mask, self.causal = mask, False
        self.segments: Tensor | None = None
        log_scale = None if log_scale is None else log_scale.clamp(min=LOWEST)
        if mask is not None:
            for real in mask.real_keys(k.shape[2]):
                k = k.masked_fill(~real[:, None, :, None], 0.0)
                log_scale = None if log_scale is None else log_scale.masked_fill(~real[:, None], LOWEST)
            for rule in mask.conjuncts:
                if isinstance(rule, SegmentMask):
                    self._add_segments(rule.ids[..., : mask.first + mask.keys])
                elif not rule.is_padding:
                    self.causal = True
        self.q, self.k, self.log_scale = q, k, log_scale

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        if dropout:
            raise ValueError(f"linear attention has no attention weights to drop; dropout must be 0, not {dropout}")
        return _normalized(self._sums(self._with_ones(values)), values)

    def step(self, values: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Continue a causal sequence: return the output, and the state after its last token.

        Args:
            values: (B, H, N, w).
            state: (B, H, d, w + 1), the sums over the earlier tokens, and with ``log_scale`` the logarithm of their
                scale, (B, H, 1); empty for the first tokens.

        Raises:
            ValueError: for a document that another one interrupts (checked on a CPU, outside of a trace).
        """
        first = None if self.segments is None else self._first_tokens(self.segments)
        sums, state = self._scan(self.q, self.k, self._with_ones(values), self.log_scale, first, state)
        return _normalized(sums, values), state

    def _scan(
        self,
        q: Tensor,
        k: Tensor,
        values: Tensor,
        log_scale: Tensor | None,
        first: Tensor | None = None,
        state: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the causal sums and the last state; they start again at the ``first`` tokens, (1 | B, N)."""
        log_decay = None if first is None else self._resets(first)
        if log_scale is None:
            sums, last = linear_scan(q, k, values, log_decay=log_decay, state=state[0] if state else None)
            return sums, (last,)
        before = state[1].to(log_scale.dtype) if state else log_scale.new_full((*log_scale.shape[:2], 1), LOWEST)
        segment = None if first is None else F.pad(first.long().cumsum(-1), (1, 0)).unsqueeze(1)
        largest = _running_max(torch.cat([before, log_scale.detach()], -1), segment)
        change = largest[..., :-1] - largest[..., 1:]
        values = values * (log_scale - largest[..., 1:]).exp().unsqueeze(-1)
        log_decay = change if log_decay is None else change + log_decay
        sums, last = linear_scan(q, k, values, log_decay=log_decay, state=state[0] if state else None)
        return sums, (last, largest[..., -1:])

    def _with_ones(self, values: Tensor) -> Tensor:
        """The values with a column of ones, whose sum is the normalizer."""
        values = values.to(self.q.dtype).expand(*self.k.shape[:2], -1, -1)
        return F.pad(values, (0, 1), value=1.0)

    def _sums(self, values: Tensor) -> Tensor:
        if self.segments is not None:
            return self._segment_sums(values, self.segments)
        if self.causal:
            return self._scan(self.q, self.k, values, self.log_scale)[0]
        if self.log_scale is not None:
            largest = F.pad(self.log_scale.detach(), (1, 0), value=LOWEST).amax(-1, keepdim=True)
            values = values * (self.log_scale - largest).exp().unsqueeze(-1)
        with full_precision(values.device):  # sums over all tokens keep their precision
            return self.q @ (self.k.mT @ values)

    def _segment_sums(self, values: Tensor, ids: Tensor) -> Tensor:
        """One scan over the tokens ordered by segment, which restarts at the first token of each."""
        ids = ids.expand(self.q.shape[0], -1)
        order = ids.argsort(dim=-1, stable=True)
        q, k, v = (_gathered(t, order) for t in (self.q, self.k, values))
        scale = None if self.log_scale is None else _gathered(self.log_scale.unsqueeze(-1), order).squeeze(-1)
        N, changes = ids.shape[1], ids.gather(1, order).diff(dim=-1) != 0
        first = F.pad(changes, (1, 0), value=True)[:, :N]
        if self.causal:
            return _gathered(self._scan(q, k, v, scale, first)[0], order.argsort(dim=-1))
        last = F.pad(changes, (0, 1), value=True)[:, :N].flip(-1)
        if scale is not None:  # all tokens of a segment have the same largest scale
            largest = _running_max(scale.detach(), first.long().cumsum(-1).unsqueeze(1))
            largest = _running_max(largest.flip(-1), last.long().cumsum(-1).unsqueeze(1)).flip(-1)
            v = v * (scale - largest).exp().unsqueeze(-1)
        out = linear_scan(q, k, v, log_decay=self._resets(first))[0]
        later = linear_scan(q.flip(2), k.flip(2), v.flip(2), log_decay=self._resets(last))[0].flip(2)
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

    def states(self, values: Tensor, head: int, batch: int = 0) -> StateTrace:
        """Return ``S = Σ_j φ(k_j) v_jᵀ`` of a head after each token, in the order of the batch, in float64.

        The sum is over the tokens of the same document so far, also without ``causal``. Nothing is erased. With a
        ``log_scale`` the features are relative to the largest scale of the sequence. Padding is all zeros.

        Args:
            values: (B, H, N, w).
            head: the head.
            batch: the item of the batch.
        """
        k, v = self.k[batch, head].detach().double(), values[batch, head].detach().double()
        if self.log_scale is not None:
            scale = self.log_scale[batch, head].detach().double()
            k = k * (scale - scale.max()).exp().unsqueeze(-1)
        ids = None if self.segments is None else self.segments.expand(self.shape[0], -1)[batch].tolist()
        real = torch.ones(len(k), dtype=torch.bool, device=k.device)
        for keys in [] if self.mask is None else self.mask.real_keys(len(k)):
            real = real & keys.expand(self.shape[0], -1)[batch]
        trace, states = StateTrace(), dict[int, Tensor]()
        for t in range(len(k)):
            document = 0 if ids is None else ids[t]
            state = states.get(document, k.new_zeros(k.shape[1], v.shape[1]))
            states[document] = trace.step(state, state, torch.outer(k[t], v[t]))
        return trace.arranged([t if is_real else None for t, is_real in enumerate(real.tolist())])

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        (b, h, i, j), (B, H, _, M) = cell, self.shape
        sums, permitted = self._terms(torch.tensor([i], device=self.q.device))
        q = a.given("q", self.q[b, h, i], "φ(q): the features of the query")
        k = a.given("k", self.k[b, h, j], "φ(k): the features of the key")
        products = a.compute("products", f"[x * y for x, y in zip({q}, {k})]", "the products of their features")
        product = a.compute("product", f"sum({products})", "φ(q) · φ(k)")
        allowed = torch.ones(M, dtype=torch.bool, device=self.q.device)
        if permitted is not None:
            allowed = permitted.expand(B, H, 1, M)[b, h, 0]
        if not allowed[j]:
            a.compute("weight", f"0.0 * {product}", "the mask leaves out this key")
            return
        if self.log_scale is not None:
            scale = self.log_scale[b, h]
            own = a.given("log_scale", scale[j], "the logarithm of the scale of the key's features")
            top = a.given("largest", scale[allowed].max(), "the largest of the allowed keys")
            product = a.compute("scaled", f"{product} * math.exp({own} - {top})", "the product of the scaled features")
        others = sums[b, h, 0].detach().double()
        allowed = allowed.clone()
        allowed[j] = False
        others, left_out = others[allowed], M - 1 - int(allowed.sum())
        meaning = f"φ(q) · φ(k) of {other_keys(len(others))}" + (f"; {left_out} are masked" if left_out else "")
        if len(others) > MAX_LISTED:
            name = a.given("others", others.sum(), f"the sum of {meaning}")
            total = a.compute("total", f"{product} + {name}", "the normalizer: φ(q) · Σ φ(k)")
        else:
            name = a.given("others", others, meaning)
            total = a.compute("total", f"{product} + sum({name})", "the normalizer: φ(q) · Σ φ(k)")
        smallest = torch.finfo(self.q.dtype).tiny ** 0.5
        if a.value(total) < smallest:
            total = a.compute("limited", f"max({total}, {smallest!r})", "at least this, against overflow in gradients")
        a.compute("weight", f"{product} / {total}", "the implied weight")

    def _rows(self, rows: Tensor) -> Tensor:
        terms = self._terms(rows)[0]
        return _normalized(torch.cat([terms, terms.sum(-1, keepdim=True)], -1), self._like)

    def _terms(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the products of these queries and all keys, zero where masked, and which are allowed."""
        scores = self.q[:, :, rows] @ self.k.mT
        permitted = None if self.mask is None else self.mask.tile(rows, slice(0, self.mask.keys))
        if self.log_scale is not None:
            scale = self.log_scale.unsqueeze(-2)
            allowed = scale if permitted is None else scale.masked_fill(~permitted, LOWEST)
            largest = F.pad(allowed.detach(), (1, 0), value=LOWEST).amax(-1, keepdim=True)
            scores = scores * (allowed - largest).exp()
        return scores if permitted is None else scores.masked_fill(~permitted, 0.0), permitted


def _normalized(sums: Tensor, like: Tensor) -> Tensor:
    """Divide all columns by the last one; zero where no key is allowed.

    A smaller divisor than the square root of the smallest normal number would overflow in the gradient.
    """
    smallest = torch.finfo(sums.dtype).tiny ** 0.5
    return (sums[..., :-1] / sums[..., -1:].clamp_min(smallest)).to(like.dtype)


def _running_max(x: Tensor, segment: Tensor | None) -> Tensor:
    """The largest value so far, (B, H, N), of the tokens of the same ``segment``, (1 | B, 1, N) in ascending order."""
    if segment is None:
        return _cumulative_max(x)
    wide = x.to(widest_dtype(x.device))
    values_of_segment = F.pad(wide, (1, 0), value=LOWEST).amax(-1, keepdim=True) - LOWEST + 1
    start = segment * values_of_segment  # above all values of the segments before
    return (_cumulative_max(wide + start) - start).to(x.dtype)


def _cumulative_max(x: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        return x.cummax(-1).values
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)  # ONNX has no cummax
    return x.unsqueeze(-2).masked_fill(later, -torch.inf).amax(-1)


def _gathered(x: Tensor, order: Tensor) -> Tensor:
    return x.take_along_dim(order[:, None, :, None], 2)
