"""The attention matrix of a recurrence: the matrix that it applies to its values.

Axes: B batch, H heads, N steps, d width of a key, w width of a value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan
from attnlab.ops.scan.sequences import Recurrence, Sequences


class ScanMap(AttentionMap):
    """The attention matrix of `linear_scan`, never materialized; takes what that takes, without the values.

    Its weights may be negative, and need not sum to one.
    """

    implied = True

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        log_decay: Tensor | None = None,
        beta: Tensor | None = None,
        a: Tensor | None = None,
        b: Tensor | None = None,
    ) -> None:
        B, H, N, _ = q.shape
        super().__init__((B, H, N, N), q)
        self.q, self.k = q, k
        self._gates: dict[str, Any] = {"log_decay": log_decay, "beta": beta, "a": a, "b": b}

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        if dropout:
            raise ValueError(f"a recurrence has no attention weights to drop; dropout must be 0, not {dropout}")
        values = values.expand(*self.q.shape[:2], -1, -1)
        return linear_scan(self.q, self.k, values, **self._gates)[0]

    def _rows(self, rows: Tensor) -> Tensor:
        """Return these rows, computed from the steps up to the last of them."""
        N = self.shape[2]
        stop = int(rows.max()) + 1 if rows.numel() else 0
        gates = {n: x if x is None or x.dim() == 1 else x[:, :, :stop] for n, x in self._gates.items()}
        earlier = ScanMap(self.q[:, :, :stop], self.k[:, :, :stop], **gates)
        weights = super(ScanMap, earlier)._rows(rows)
        return torch.cat([weights, weights.new_zeros(*weights.shape[:-1], N - stop)], -1)


class RecurrenceMap(AttentionMap):
    """The attention matrix of a `Recurrence`, never materialized, in the order of the batch.

    Its weights may be negative, and need not sum to one. Rows and columns of padding are zero.

    Args:
        inputs: the recurrence, in the order of ``sequences`` and masked by it.
        sequences: the documents and the padding of the rows.
    """

    implied = True

    def __init__(self, inputs: Recurrence, sequences: Sequences) -> None:
        B, H, N, _ = inputs.q.shape
        super().__init__((B, H, N, N), inputs.q)
        q, k, _, log_decay, beta, a, b, self._skip, *_ = inputs
        self._scan, self._sequences = ScanMap(q, k, log_decay=log_decay, beta=beta, a=a, b=b), sequences

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        values = self._sequences.arrange(values.expand(*self.shape[:3], -1), 2)
        out = self._scan.apply(values, dropout=dropout)
        if self._skip is not None:
            out = out + (self._skip.unsqueeze(-1) if self._skip.dim() == 1 else self._skip).unsqueeze(-1) * values
        real = self._sequences.real
        if real is not None:
            out = out.masked_fill(~real[:, None, :, None], 0.0)
        return self._sequences.restore(out, 2)
