"""Errors in fully masked rows and in the attention weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain
from torch import Tensor

from attnlab.ops.attention_map import DenseMap
from faulty._registry import fails


@fails("fully_masked_rows_are_zero")
class AddsTheBiasToMaskedRows(Plain):
    """Fully masked rows hold the bias of the last projection."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        out = super().forward(x, **options)
        return torch.where((out == 0).all(-1, keepdim=True), self.output.bias, out)


@fails("fully_masked_rows_are_zero")
class NanInMaskedRows(Plain):
    """Fully masked rows are NaN, as is the softmax of a row of -inf."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        out = super().forward(x, **options)
        return out.masked_fill((out == 0).all(-1, keepdim=True), torch.nan)


@fails("fully_masked_rows_have_finite_gradients")
class NanGradientsOfMaskedRows(Plain):
    """The output is zero, but the gradient of the softmax of a row of -inf is NaN."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return (scores if mask is None else scores.masked_fill(~mask.tensor(), -torch.inf)).softmax(-1)


@fails("extreme_scores_stay_finite")
class OverflowsExp(Plain):
    """Does not subtract the largest score before the exponential."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        powers = scores.exp() if mask is None else scores.exp().masked_fill(~mask.tensor(), 0.0)
        return powers / powers.sum(-1, keepdim=True)


class WrongWeights(Plain):
    """Returns other attention weights than those of the forward pass."""

    def change(self, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        return self.change(super()._attention_weights(x, mask, attn_bias, context))


@fails("weights_sum_to_one")
class ReturnsUnnormalizedWeights(WrongWeights):
    """Returns weights that are not divided by their sum."""

    def change(self, weights: Tensor) -> Tensor:
        return 1.5 * weights


@fails("weights_exclude_dropout")
class ReturnsDroppedWeights(WrongWeights):
    """Returns the weights after dropout."""

    def change(self, weights: Tensor) -> Tensor:
        return F.dropout(weights, self.dropout, self.training)


@fails("weights_reproduce_output")
class ReturnsTheMeanHead(WrongWeights):
    """Returns the mean over the heads for each head."""

    def change(self, weights: Tensor) -> Tensor:
        return weights.mean(1, keepdim=True).expand_as(weights)


@fails("masked_weights_are_zero")
class ReturnsWeightsWithoutMask(Plain):
    """Returns the weights without the mask."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        return super()._attention_weights(x, None, attn_bias, context)


@fails("reading_weights_keeps_output")
class ChangesAfterReading(WrongWeights):
    """Computes another output after the weights were read."""

    was_read = False

    def change(self, weights: Tensor) -> Tensor:
        self.was_read = True
        return weights

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (0.5 if self.was_read else 1.0)


@fails("weights_are_per_head")
class AveragesTheHeads(ReturnsTheMeanHead):
    """Returns weights averaged over the heads, and applies the average."""

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super()._apply_weights(self.change(weights), x, context)


@fails("weights_are_per_head")
class IgnoresTheWeights(Plain):
    """Computes the output from x in place of the weights that are passed."""

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super()._forward(x, None, context=context)


@fails("attention_map_matches_weights")
class MapWithoutMask(Plain):
    """Its attention map ignores the mask."""

    def _build_map(self, x: Tensor, mask: Any, *args: Any, **options: Any) -> Any:
        return DenseMap(super()._attention_weights(x, None, *args, **options))


@fails("attn_bias_adds_to_scores")
class DropsTheBiasWithMask(Plain):
    """Ignores the bias if there is a mask."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, *args: Any, **options: Any) -> Tensor:
        return super()._forward(x, mask, attn_bias if mask is None else None, *args, **options)


@fails("cross_attention")
class IgnoresTheContext(Plain):
    """Attends to its own sequence in place of the context."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(x, None)


@fails("cross_attention")
class TruncatesTheContext(Plain):
    """Attends to as many tokens of the context as it has queries."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super().project(x, None if context is None else context[:, : x.shape[1]])
