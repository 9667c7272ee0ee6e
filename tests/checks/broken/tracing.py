"""A value is read in Python during the forward pass."""

from __future__ import annotations

from typing import Any

from plain import Plain
from torch import Tensor

from broken._twins import breaks


@breaks("traceable")
class ReadsAToken(Plain):
    """Branches on a value of the tokens."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        return super()._forward(x if x.sum() > 0 else x + 0, mask, **given)


@breaks("traceable")
class ReadsAMask(Plain):
    """Drops a mask that masks nothing."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return super().normalize(scores, None if mask is None or bool(mask.tensor().all()) else mask)


@breaks("traceable")
class ReadsInTraining(Plain):
    """Records a statistic of long sequences in training."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        if self.training and x.shape[1] > 64:
            self.mean = x.mean().item()
        return super()._forward(x, mask, **given)
