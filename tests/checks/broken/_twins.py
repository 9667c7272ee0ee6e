"""Where a twin is entered, and how most of them attend."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import Attention

TWINS: list[tuple[str, type[Attention]]] = []


def breaks(promise: str) -> Callable[[type[Attention]], type[Attention]]:
    """Enter a class as one that breaks ``promise``."""

    def enter(twin: type[Attention]) -> type[Attention]:
        TWINS.append((promise, twin))
        return twin

    return enter


def attend(layer: MultiAttention, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The output, with dropout where it belongs."""
    return layer._apply_weights(F.dropout(weights, layer.dropout, layer.training), x, context)
