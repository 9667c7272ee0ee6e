"""The attention matrix of a recurrence: the matrix that it applies to its values.

Axes: B batch, H heads, N steps, d width of a key, w width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan


class ScanMap(AttentionMap):
    """The attention matrix of `linear_scan`, never materialized; takes what that takes, without the values.

    Its weights may be negative, and need not sum to one.
    """

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
        self.q, self.k, self._gates = q, k, {"log_decay": log_decay, "beta": beta, "a": a, "b": b}

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
