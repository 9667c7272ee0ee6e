"""Places are counted from somewhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("padding on the left shifts nothing")
class CountsThePadding(MultiAttention):
    """Turns nothing, and adds to every token its place in the row, padding included."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(x.shape[1], device=x.device).unsqueeze(-1)
        return super()._project_qkv(x + 0.1 * place.to(x), context)
