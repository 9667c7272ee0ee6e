"""A layer of theirs whose ``mask`` is (B, N), True for a real token, as most of these packages have it."""

from __future__ import annotations

from torch import Tensor, nn


class Padded(nn.Module):
    """Holds their layer as ``inner``."""

    inner: nn.Module

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N) is the same for every query: what any of them sees is real."""
        return self.inner(x, mask=None if mask is None else mask.any(1))
