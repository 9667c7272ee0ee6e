"""Digits are lost with the length."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
from torch import Tensor

from broken._twins import breaks


@breaks("low precision matches float64")
@breaks("low-precision error does not grow with length")
class AccumulatesInLowPrecision(Plain):
    """Scores decay with distance, by a running sum that is kept in the dtype of the tokens."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        gates = q.new_full((k.shape[2],), -0.11)
        total = torch.stack([*gates.unbind()]).cumsum(0)
        return super().scores(q, k) + total[-q.shape[2] :, None] - total


@breaks("low-precision error does not grow with length")
class SumsOneByOne(Plain):
    """Adds the values of the keys one after another, in the dtype of the tokens."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        if weights.dtype == torch.float64:
            return super().attend(weights, v)
        heads = torch.zeros_like(weights[..., :1] * v[..., :1, :])
        for j in range(v.shape[2]):
            heads = heads + (weights[..., j : j + 1] * v[:, :, j : j + 1]).to(heads.dtype)
        return self.output(heads.transpose(1, 2).flatten(2))


@breaks("low precision matches float64")
class RoundsTheWeights(Plain):
    """Keeps three bits of every weight in half precision."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        weights = super().normalize(scores, mask)
        return weights.to(torch.float8_e5m2).to(weights.dtype) if weights.dtype == torch.float16 else weights
