"""It knows an order."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("permuted in, permuted out")
class KnowsPlaces(MultiAttention):
    """Adds the position to every token."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project_qkv(x + torch.arange(x.shape[1]).unsqueeze(-1).to(x), context)
