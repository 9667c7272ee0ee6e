"""Shared by the adapters: the calls that several packages have in common, and copies of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """Calls ``inner``, the layer of the package, without a mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.inner(x)


class KeyMaskAdapter(Adapter):
    """Calls a layer whose ``mask`` is (B, N), True for a real token."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*, is the same for every query."""
        return self.inner(x, mask=key_mask(mask))


def key_mask(mask: Tensor | None) -> Tensor | None:
    """The keys (B, N) that any query attends to."""
    return None if mask is None else mask.any(1)


def split_projection(fused: nn.Linear, parts: Sequence[nn.Linear]) -> None:
    """Copy a fused projection into separate ones; a bias that they do not have is dropped."""
    for name in ("weight", "bias"):
        if getattr(parts[0], name) is not None:
            for part, value in zip(parts, getattr(fused, name).chunk(len(parts)), strict=True):
                with torch.no_grad():
                    getattr(part, name).copy_(value)


def join_projections(parts: Sequence[nn.Linear], fused: nn.Linear) -> None:
    """Copy separate projections into a fused one."""
    for name in ("weight", "bias"):
        if getattr(fused, name) is not None:
            with torch.no_grad():
                getattr(fused, name).copy_(torch.cat([getattr(part, name) for part in parts]))
