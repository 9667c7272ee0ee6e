"""The weights are not what they are said to be."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from plain import Plain
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("weights sum to one")
class ShowsScores(MultiAttention):
    """Shows the powers of the scores, without dividing by their sum."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        Q, K, _ = self._project_qkv(x, context)
        powers = (Q @ K.mT / math.sqrt(self.head_dim)).exp()
        return powers if mask is None else powers.masked_fill(~mask.tensor(), 0.0)


@breaks("weights are zero where masked")
class ShowsWithoutMask(MultiAttention):
    """Shows the weights as if there were no mask."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        return super()._attention_weights(x, None, attn_bias, context)


@breaks("asking for weights changes nothing")
class ChangedByAsking(MultiAttention):
    """Goes another way once its weights were asked for."""

    asked = False

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        self.asked = True
        return super()._attention_weights(x, mask, attn_bias, context)

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        return super()._forward(x, mask, attn_bias, context) * (0.5 if self.asked else 1.0)


@breaks("weights hold no dropout")
class DropsWhatItShows(MultiAttention):
    """Shows the weights after dropout."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        return F.dropout(super()._attention_weights(x, mask, attn_bias, context), self.dropout, self.training)


@breaks("weights make the output")
class ShowsTheMeanHead(MultiAttention):
    """Shows the mean over the heads for each of them."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        weights = super()._attention_weights(x, mask, attn_bias, context)
        return weights.mean(1, keepdim=True).expand_as(weights)


@breaks("the core is the map")
class ProbesWithoutMask(MultiAttention):
    """Shows the map that it uses, but what it says of its parts is without the mask."""

    def _build_map(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Any:
        return super()._build_map(x, None, attn_bias, context)

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        return super()._build_map(x, mask, attn_bias, context).attention_weights()


@breaks("bias adds to the scores")
class DropsTheBias(MultiAttention):
    """Forgets the bias where there is a mask."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        return super()._forward(x, mask, attn_bias if mask is None else None, context)


@breaks("context may be another sequence")
class LooksAtItself(MultiAttention):
    """Takes a context and looks at its own sequence."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project_qkv(x, None)


@breaks("context may be another sequence")
class TrimsTheContext(MultiAttention):
    """Looks at as much of a context as it has tokens itself."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project_qkv(x, None if context is None else context[:, : x.shape[1]])


@breaks("weights are per head")
class AveragesTheHeads(Plain):
    """Shows weights averaged over the heads, and mixes by the average."""

    def _attention_weights(self, x: Tensor, mask: Any, *given: Any, **more: Any) -> Tensor:
        weights = super()._attention_weights(x, mask, *given, **more)
        return weights.mean(1, keepdim=True).expand_as(weights)

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super()._apply_weights(weights.mean(1, keepdim=True).expand_as(weights), x, context)


@breaks("weights are per head")
class MixIgnoresItsWeights(Plain):
    """Computes the output anew instead of mixing by the weights it is given."""

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super()._forward(x, None, context=context)
