"""A token that may look at nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import attend, breaks


@breaks("empty rows give zeros")
class NeverBlanks(MultiAttention):
    """Leaves the bias of the last projection in a row that may look at nothing."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        x, bound, given = self._validate(x, mask, **given)
        return self._forward(x, bound, **given)


@breaks("empty rows give zeros")
class NanOnEmptyRows(MultiAttention):
    """The softmax of a row of -inf."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        x, bound, given = self._validate(x, mask, **given)
        scores = self.scores(x, given.get("attn_bias"), given.get("context"))
        if bound is not None:
            scores = scores.masked_fill(~bound.tensor(), -torch.inf)
        return attend(self, scores.softmax(-1), x, given.get("context"))

    def scores(self, x: Tensor, bias: Tensor | None, context: Tensor | None) -> Tensor:
        Q, K, _ = self._project_qkv(x, context)
        return Q @ K.mT / math.sqrt(self.head_dim) + (0 if bias is None else bias)


@breaks("empty rows give finite gradients")
class NanGradients(NanOnEmptyRows):
    """The same, with the NaN replaced by zeros afterwards: the gradient remembers."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        out = super().forward(x, mask=mask, **given)
        return out.masked_fill(out.isnan(), 0.0)
