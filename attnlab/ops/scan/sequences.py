"""The sequences in the rows of a batch: what a recurrence needs to know about padding and packed documents.

Axes: B batch, N tokens, L tokens of the mask (with a cache also the earlier ones), H heads, d width of a key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask, SegmentMask
from attnlab.utils.tracing import can_inspect_values

LONG_AGO = -(2**62)
"""The position of a first token in an earlier call."""


class Recurrence(NamedTuple):
    """The inputs of `attnlab.ops.scan.linear_scan`, and a term that a value adds to its own output.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, w).
        log_decay: (H,), (B, H, N) or (B, H, N, d), at most 0; None without decay.
        beta: (B, H, N), or None.
        a: (B, H, N, d), or None.
        b: (B, H, N, d), or None.
        skip: (H,) or (B, H, N): ``skip_t v_t`` is added to output t; None for nothing.
        bonus: (B, H, N): ``bonus_t v_t`` is added to output t after its normalization; None for nothing.
        gate: (B, H, N, w): multiplies the output, after that; None for none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    skip: Tensor | None = None
    bonus: Tensor | None = None
    gate: Tensor | None = None


class Sequences:
    """Tokens in the order in which a recurrence reads them: each document as a whole, and padding last.

    A recurrence in this order starts again at the first token of each document. Padding changes no state, so that a
    padded batch gives what its sequences give alone; the output of padding is zero.

    Args:
        mask: a conjunction of causal, padding and segment masks; None without a mask.
        length: N.
        cached: whether the tokens continue earlier ones. Documents then stay in their order, and none may be
            interrupted by another one.

    Attributes:
        first: Boolean (B | 1, N), True for the first token of a document; None for one document.
        real: Boolean (B | 1, N), False for padding; None without padding.

    Raises:
        ValueError: with ``cached``, for a document that another one interrupts (checked on a CPU, outside of a trace).
    """

    def __init__(self, mask: BoundMask | None, length: int, *, cached: bool = False) -> None:
        self.first: Tensor | None = None
        self.real: Tensor | None = None
        self._order: Tensor | None = None
        self._back: Tensor | None = None
        if mask is None:
            return
        total = mask.first + mask.keys
        ids, real = _documents(mask, total), _real(mask, total)
        if ids is None and real is None:
            return
        if ids is not None and cached:
            self.first = _first_tokens(ids, real)[:, total - length :]
            ids = None
        if real is not None:
            real = real[:, total - length :]
        if ids is not None or real is not None:
            self._reorder(ids, real)

    def _reorder(self, ids: Tensor | None, real: Tensor | None) -> None:
        """Order by document, padding last; documents are not reordered where their first tokens are known."""
        if ids is None:
            assert real is not None
            self._back = torch.where(real, real.cumsum(1), real.sum(1, keepdim=True) + (~real).cumsum(1)) - 1
            position = torch.arange(real.shape[1], device=real.device).expand(real.shape)
            self._order = torch.zeros_like(self._back).scatter(1, self._back, position)
        else:
            if real is not None:
                ids = ids.masked_fill(~real, torch.iinfo(torch.long).max)
            self._order = ids.argsort(dim=-1, stable=True)
            self._back = self._order.argsort(dim=-1)
            changes = ids.gather(1, self._order).diff(dim=-1) != 0
            self.first = F.pad(changes, (1, 0), value=True)[:, : ids.shape[1]]
        if real is not None:
            self.real = real.expand(self._order.shape).gather(1, self._order)
        if self.first is not None and ids is None:
            shape = torch.broadcast_shapes(self.first.shape, self._order.shape)
            self.first = self.first.expand(shape).gather(1, self._order.expand(shape))

    def arrange(self, x: Tensor, axis: int = 1) -> Tensor:
        """Return the tokens of ``x``, whose axes are batch, ..., tokens (``axis``), ..., in this order."""
        return _taken(x, self._order, axis)

    def restore(self, x: Tensor, axis: int = 1) -> Tensor:
        """Undo `arrange`."""
        return _taken(x, self._back, axis)

    def zero_padding(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, N, D), in the order of the batch, with zeros for padding."""
        if self.real is None or self._back is None:
            return x
        return x.masked_fill(~self.real.gather(1, self._back).unsqueeze(-1), 0.0)

    def age(self) -> Tensor | None:
        """Return the number of tokens since the first of its document, (B | 1, N); None for one document.

        It is larger than any length for the tokens of a document that began before.
        """
        if self.first is None:
            return None
        N = self.first.shape[1]
        position = torch.arange(N, device=self.first.device)
        return position - torch.where(self.first, position, LONG_AGO).cummax(-1).values if N else position[None]

    def last(self) -> Tensor | None:
        """Return the number of real tokens of each row, (B | 1,); None without padding."""
        return None if self.real is None else self.real.sum(-1)

    def masked(self, inputs: Recurrence) -> Recurrence:
        """Return inputs, in this order, with which padding changes no state and documents do not see each other."""
        q, k, log_decay, b = inputs.q, inputs.k, inputs.log_decay, inputs.b
        if self.first is not None:
            if log_decay is None:
                log_decay = torch.zeros(q.shape[:3], device=q.device, dtype=_wide(q.dtype))
            elif log_decay.dim() == 1:
                log_decay = log_decay.unsqueeze(-1).expand(q.shape[:3])
            log_decay = log_decay.masked_fill(_like(self.first, log_decay), -torch.inf)
        if self.real is not None:
            padding = ~self.real
            k = k.masked_fill(_like(padding, k), 0.0)  # with which no value, and no correction, changes the state
            if log_decay is not None:
                if log_decay.dim() == 1:
                    log_decay = log_decay.unsqueeze(-1).expand(q.shape[:3])
                log_decay = log_decay.masked_fill(_like(padding, log_decay), 0.0)
            b = b if b is None else b.masked_fill(_like(padding, b), 0.0)
        return inputs._replace(k=k, log_decay=log_decay, b=b)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _like(tokens: Tensor, x: Tensor) -> Tensor:
    """(B, N) with the axes of ``x``, (B, H, N) or (B, H, N, d)."""
    return tokens.view(tokens.shape[0], 1, tokens.shape[1], *[1] * (x.dim() - 3))


def _taken(x: Tensor, order: Tensor | None, axis: int) -> Tensor:
    if order is None:
        return x
    shape = [1] * x.dim()
    shape[0], shape[axis] = order.shape
    return x.gather(axis, order.view(shape).expand(x.shape))  # take_along_dim would fix the sizes of an export


def _real(mask: BoundMask, total: int) -> Tensor | None:
    """Which of all tokens are real, (B | 1, L); None without padding."""
    real: Tensor | None = None
    for keys in mask.real_keys(total):
        real = keys if real is None else real & keys
    return real


def _documents(mask: BoundMask, total: int) -> Tensor | None:
    """The document of every token, (B | 1, L); None for one document."""
    found: Tensor | None = None
    for rule in mask.conjuncts:
        if isinstance(rule, SegmentMask):
            ids = rule.ids if rule.ids.dim() == 2 else rule.ids.unsqueeze(0)
            ids = ids[:, :total]
            if found is not None:  # both masks must agree: one value per pair of ids
                ids = (ids - ids.min()) * (found.max() - found.min() + 1) + found
            found = ids
    return found


def _first_tokens(ids: Tensor, real: Tensor | None) -> Tensor:
    """Which real tokens are the first of their document, (B | 1, L)."""
    if can_inspect_values(ids):
        for row in range(max(len(ids), 1 if real is None else len(real))):
            kept = ids[row % len(ids)]
            kept = kept if real is None else kept[real[row % len(real)]]
            runs = kept.unique_consecutive()
            if len(runs.unique()) < len(runs):
                raise ValueError(
                    "with a cache, a document must not be interrupted by another one; "
                    "decode each document with its own cache"
                )
    if real is None:
        return F.pad(ids.diff(dim=-1) != 0, (1, 0), value=True)[:, : ids.shape[1]]
    ids, real = torch.broadcast_tensors(ids, real)
    position = torch.arange(ids.shape[1], device=ids.device)
    latest = torch.where(real, position, -1).cummax(-1).values  # the last real token up to each
    previous = F.pad(latest, (1, 0), value=-1)[:, : ids.shape[1]]
    return real & ((previous < 0) | (ids.gather(1, previous.clamp_min(0)) != ids))
