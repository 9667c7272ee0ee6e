"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gateddeltanet.reference import delta_rule, project
from ..linear.reference import by_document, normalized_and_gated
from .deltanet import DeltaNet


def reference(layer: DeltaNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: DeltaNet, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D): the gated delta rule without a decay."""
    q, k, v = project(layer, x)
    beta = layer.strength(x).sigmoid() * (2 if layer.allow_neg_eigval else 1)  # (B, N, H)
    return normalized_and_gated(layer, delta_rule(q, k, v, torch.ones_like(beta), beta), x)
