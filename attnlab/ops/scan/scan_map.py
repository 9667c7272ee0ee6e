"""Who looks at whom in a recurrence: the matrix by which it mixes its values.

Axes: B batch, H heads, N steps, d width of a key, w width of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan


class ScanMap(AttentionMap):
    """The core of a mechanism that is computed by `linear_scan`; takes what that takes, but the values.

    Its weights need not be positive, nor one in sum.
    """

    def __init__(self, q: Tensor, k: Tensor, *, log_decay: Tensor | None = None, beta: Tensor | None = None) -> None:
        B, H, N, _ = q.shape
        super().__init__((B, H, N, N), q)
        self.q, self.k, self.log_decay, self.beta = q, k, log_decay, beta

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each step reads, (B, H, N, w).

        Raises:
            ValueError: for a dropout: a recurrence has no weights that could be dropped.
        """
        if dropout:
            raise ValueError(f"a recurrence has no weights to drop; dropout is 0, not {dropout}")
        values = values.expand(*self.q.shape[:2], -1, -1)
        return linear_scan(self.q, self.k, values, log_decay=self.log_decay, beta=self.beta)[0]

    def _rows(self, rows: Tensor) -> Tensor:
        """The columns of these rows, from the steps up to the last of them alone: what comes later is not heard."""
        N = self.shape[2]
        stop = int(rows.max()) + 1 if rows.numel() else 0
        until = slice(0, stop)
        log_decay, beta = self.log_decay, None if self.beta is None else self.beta[:, :, until]
        if log_decay is not None and log_decay.dim() > 1:
            log_decay = log_decay[:, :, until]
        head = ScanMap(self.q[:, :, until], self.k[:, :, until], log_decay=log_decay, beta=beta)
        seen = super(ScanMap, head)._rows(rows)
        return torch.cat([seen, seen.new_zeros(*seen.shape[:-1], N - stop)], -1)
