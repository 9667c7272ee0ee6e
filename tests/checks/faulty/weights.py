"""Errors in fully masked rows and in the attention weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain, fails
from torch import Tensor

from attnlab.ops.attention_map import DenseMap


@fails("fully_masked_rows_are_zero", replaces="forward")
def adds_the_bias_to_masked_rows(self: Plain, x: Tensor, **options: Any) -> Tensor:
    """Fully masked rows hold the bias of the last projection."""
    out = Plain.forward(self, x, **options)
    return torch.where((out == 0).all(-1, keepdim=True), self.output.bias, out)


@fails("fully_masked_rows_are_zero", replaces="forward")
def nan_in_masked_rows(self: Plain, x: Tensor, **options: Any) -> Tensor:
    """Fully masked rows are NaN, as is the softmax of a row of -inf."""
    out = Plain.forward(self, x, **options)
    return out.masked_fill((out == 0).all(-1, keepdim=True), torch.nan)


@fails("fully_masked_rows_have_finite_gradients", replaces="normalize")
def nan_gradients_of_masked_rows(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """The output is zero, but the gradient of the softmax of a row of -inf is NaN."""
    return (scores if mask is None else scores.masked_fill(~mask.tensor(), -torch.inf)).softmax(-1)


@fails("extreme_scores_stay_finite", replaces="normalize")
def overflows_exp(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Does not subtract the largest score before the exponential."""
    powers = scores.exp() if mask is None else scores.exp().masked_fill(~mask.tensor(), 0.0)
    return powers / powers.sum(-1, keepdim=True)


@fails("weights_sum_to_one", replaces="returned")
def returns_unnormalized_weights(self: Plain, weights: Tensor) -> Tensor:
    return 1.5 * weights


@fails("weights_exclude_dropout", replaces="returned")
def returns_dropped_weights(self: Plain, weights: Tensor) -> Tensor:
    return F.dropout(weights, self.dropout, self.training)


@fails("weights_reproduce_output", replaces="returned")
def returns_the_mean_head(self: Plain, weights: Tensor) -> Tensor:
    return weights.mean(1, keepdim=True).expand_as(weights)


@fails("masked_weights_are_zero", replaces="_attention_weights")
def returns_weights_without_mask(self: Plain, x: Tensor, mask: Any, **options: Any) -> Tensor:
    return Plain._attention_weights(self, x, None, **options)


@fails("reading_weights_keeps_output")
class ChangesAfterReading(Plain):
    """Computes another output after the weights were read."""

    was_read = False

    def returned(self, weights: Tensor) -> Tensor:
        self.was_read = True
        return weights

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (0.5 if self.was_read else 1.0)


@fails("weights_are_per_head")
class AveragesTheHeads(Plain):
    """Returns weights averaged over the heads, and applies the average."""

    returned = returns_the_mean_head

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super()._apply_weights(self.returned(weights), x, context)


@fails("weights_are_per_head", replaces="_apply_weights")
def ignores_the_weights(self: Plain, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Computes the output from x in place of the weights that are passed."""
    return Plain._forward(self, x, None, context=context)


@fails("attention_map_matches_weights", replaces="_build_map")
def map_without_mask(self: Plain, x: Tensor, mask: Any, *args: Any, **options: Any) -> Any:
    return DenseMap(Plain._attention_weights(self, x, None, *args, **options))


@fails("attn_bias_adds_to_scores", replaces="_forward")
def drops_the_bias_with_mask(self: Plain, x: Tensor, mask: Any, *, attn_bias: Any = None, **options: Any) -> Tensor:
    return Plain._forward(self, x, mask, attn_bias if mask is None else None, **options)


@fails("cross_attention", replaces="project")
def ignores_the_context(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return Plain.project(self, x, None)


@fails("cross_attention", replaces="project")
def truncates_the_context(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return Plain.project(self, x, None if context is None else context[:, : x.shape[1]])
