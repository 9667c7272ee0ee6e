"""Attention that is wrong in one way each, and the promise that must notice it.

Most override one method of `MultiAttention`; what they do wrong is in their docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.attention import Attention
from attnlab.engines.softmax import softmax_attention, softmax_weights
from attnlab.masks import BoundMask, as_mask, causal, from_tensor
from attnlab.models.multihead import MultiAttention

TWINS: list[tuple[str, type[Attention]]] = []


def breaks(promise: str) -> Callable[[type[Attention]], type[Attention]]:
    """Enter a class as one that breaks ``promise``."""

    def enter(twin: type[Attention]) -> type[Attention]:
        TWINS.append((promise, twin))
        return twin

    return enter


def attend(layer: MultiAttention, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The output, with dropout where it belongs."""
    return layer._mix(F.dropout(weights, layer.dropout, layer.training), x, context)


# Shapes


@breaks("keeps the shape")
class Squeezes(MultiAttention):
    """Drops the batch axis of a single item."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).squeeze(0)


@breaks("keeps the shape")
class NeedsEvenLengths(MultiAttention):
    """Reshapes the sequence into pairs."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).unflatten(1, (-1, 2)).flatten(1, 2)


@breaks("takes an empty batch or sequence")
class ReshapesByGuess(MultiAttention):
    """Leaves a size to be inferred, which no size can be where there are no numbers."""

    @staticmethod
    def _concat(heads: Tensor) -> Tensor:
        B, H, N, d = heads.shape
        return heads.transpose(1, 2).reshape(B, N, H, -1).reshape(B, N, H * d)


@breaks("keeps the dtype")
class ComputesInSingle(MultiAttention):
    """Returns float32 whatever came in."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).float()


@breaks("runs under bfloat16 autocast")
class LeavesAutocast(MultiAttention):
    """Projects outside of autocast what was computed inside of it."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, V = self._project(x, context)
        heads = self._concat(softmax_attention(Q, K, V, mask, bias, dropout=self.dropout if self.training else 0.0))
        with torch.autocast(x.device.type, enabled=False):
            return self.output(heads)


@breaks("takes any strides")
class ReadsMemory(MultiAttention):
    """Takes the tokens to lie one after another in memory."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        return super()._project(x.as_strided((B, N, D), (N * D, D, 1)), context)


# Leaks


@breaks("tokens reach each other")
class Deaf(MultiAttention):
    """Every token hears itself alone."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        weights = super()._weights(x, mask, bias, context)
        return torch.eye(*weights.shape[-2:]).to(weights).expand_as(weights)

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return attend(self, self._weights(x, mask, bias, context), x, context)


@breaks("causal hears no future")
class LeaksByOne(MultiAttention):
    """Its triangle is one diagonal too high."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            N = x.shape[1]
            mask = from_tensor(torch.ones(N, N, dtype=torch.bool).tril(1)).bind(N)
        return super()._forward(x, mask, bias, context)


@breaks("causal hears no future")
class LeaksAcrossBlocks(MultiAttention):
    """Is causal in blocks of 64, and forgets to be beyond the first."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            place = torch.arange(x.shape[1])
            seen = (place <= place[:, None]) | ((place // 64 == place[:, None] // 64) & (place >= 64))
            mask = from_tensor(seen).bind(x.shape[1])
        return super()._forward(x, mask, bias, context)


@breaks("causal hears no future under a mask")
class DropsCausal(MultiAttention):
    """A mask takes the place of causal."""

    def _admit(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        if mask is None:
            return super()._admit(x, mask, **optional)
        causal, self.causal = self.causal, False
        try:
            return super()._admit(x, mask, **optional)
        finally:
            self.causal = causal


@breaks("masked keys are never heard")
class InvertsTheMask(MultiAttention):
    """Takes True to mean *may not look*."""

    def _admit(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        return super()._admit(x, None if mask is None else ~as_mask(mask), **optional)


@breaks("masked keys are never heard")
class MasksSoftly(MultiAttention):
    """Takes ten off a forbidden score, where it should take all."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, _ = self._project(x, context)
        if mask is not None:
            softly = -10.0 * (~mask.tensor()).to(x.dtype)
            bias = softly if bias is None else bias + softly
        return attend(self, softmax_weights(Q, K, None, bias), x, context)


@breaks("padding is never heard")
class PadsOnTheRight(MultiAttention):
    """Reads a mask as a count of keys, and takes the first so many."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and not mask.is_causal:
            counts = mask.tensor().sum(-1, keepdim=True)
            mask = from_tensor(torch.arange(mask.keys) < counts).bind(mask.queries, mask.keys)
        return super()._forward(x, mask, bias, context)


@breaks("padding is as if absent")
class ScalesByLength(MultiAttention):
    """Sharpens the scores with the length, padding included."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project(x, context)
        return Q * math.log(1 + x.shape[1]), K, V


@breaks("other batch items are never heard")
class NormalisesOverTheBatch(MultiAttention):
    """Subtracts the batch's mean, in training."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) if self.training else x, **given)


# Rows


@breaks("empty rows give zeros")
class NeverBlanks(MultiAttention):
    """Leaves the bias of the last projection in a row that may look at nothing."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        bound, given = self._admit(x, mask, **given)
        return self._forward(x, bound, **given)


@breaks("empty rows give zeros")
class NanOnEmptyRows(MultiAttention):
    """The softmax of a row of -inf."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        bound, given = self._admit(x, mask, **given)
        scores = self.scores(x, given.get("bias"), given.get("context"))
        if bound is not None:
            scores = scores.masked_fill(~bound.tensor(), -torch.inf)
        return attend(self, scores.softmax(-1), x, given.get("context"))

    def scores(self, x: Tensor, bias: Tensor | None, context: Tensor | None) -> Tensor:
        Q, K, _ = self._project(x, context)
        return Q @ K.mT / math.sqrt(self.head_dim) + (0 if bias is None else bias)


@breaks("empty rows give finite gradients")
class NanGradients(NanOnEmptyRows):
    """The same, with the NaN replaced by zeros afterwards: the gradient remembers."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        out = super().forward(x, mask=mask, **given)
        return out.masked_fill(out.isnan(), 0.0)


# Maps


@breaks("weights sum to one")
class ShowsScores(MultiAttention):
    """Shows the powers of the scores, without dividing by their sum."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, _ = self._project(x, context)
        powers = (Q @ K.mT / math.sqrt(self.head_dim)).exp()
        return powers if mask is None else powers.masked_fill(~mask.tensor(), 0.0)


@breaks("weights are zero where masked")
class ShowsWithoutMask(MultiAttention):
    """Shows the weights as if there were no mask."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        return super()._weights(x, None, bias, context)


@breaks("asking for weights changes nothing")
class ChangedByAsking(MultiAttention):
    """Goes another way once its weights were asked for."""

    asked = False

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        self.asked = True
        return super()._weights(x, mask, bias, context)

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return super()._forward(x, mask, bias, context) * (0.5 if self.asked else 1.0)


@breaks("weights hold no dropout")
class DropsWhatItShows(MultiAttention):
    """Shows the weights after dropout."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        return F.dropout(super()._weights(x, mask, bias, context), self.dropout, self.training)


@breaks("weights make the output")
class ShowsTheMeanHead(MultiAttention):
    """Shows the mean over the heads for each of them."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        weights = super()._weights(x, mask, bias, context)
        return weights.mean(1, keepdim=True).expand_as(weights)


@breaks("the core is the map")
class ProbesWithoutMask(MultiAttention):
    """Shows the map that it uses, but what it says of its parts is without the mask."""

    def _core(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Any:
        return super()._core(x, None, bias, context)

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        return super()._core(x, mask, bias, context).weights()


@breaks("bias adds to the scores")
class DropsTheBias(MultiAttention):
    """Forgets the bias where there is a mask."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return super()._forward(x, mask, bias if mask is None else None, context)


@breaks("context may be another sequence")
class LooksAtItself(MultiAttention):
    """Takes a context and looks at its own sequence."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project(x, None)


@breaks("context may be another sequence")
class TrimsTheContext(MultiAttention):
    """Looks at as much of a context as it has tokens itself."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project(x, None if context is None else context[:, : x.shape[1]])


@breaks("permuted in, permuted out")
class KnowsPlaces(MultiAttention):
    """Adds the position to every token."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project(x + torch.arange(x.shape[1]).unsqueeze(-1).to(x), context)


# The formula


@breaks("fast path = reference, outputs")
class ScalesByWidth(MultiAttention):
    """Divides by the root of embed_dim, in both paths: only the formula notices."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project(x, context)
        return Q / math.sqrt(self.num_heads), K, V


@breaks("fast path = reference, outputs")
class SplitsHeadsWrongly(MultiAttention):
    """Takes every third channel as a head, in both paths."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        keys = x if context is None else context
        D = self.embed_dim
        parts = [
            F.linear(given, self.qkv.weight[i * D : (i + 1) * D], self.qkv.bias[i * D : (i + 1) * D])
            for i, given in enumerate((x, keys, keys))
        ]
        Q, K, V = (part.unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2) for part in parts)
        return Q, K, V


@breaks("fast path = reference, gradients")
class DetachesKeys(MultiAttention):
    """The keys learn nothing."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project(x, context)
        return Q, K.detach(), V


class WrongSlope(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


@breaks("gradients match finite differences")
class HalvesTheSlope(MultiAttention):
    """Its own backward pass forgets a factor."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(WrongSlope.apply(x), **given)


@breaks("extreme scores stay finite")
class OverflowsExp(NanOnEmptyRows):
    """The softmax without taking off the highest score first."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        bound, given = self._admit(x, mask, **given)
        powers = self.scores(x, given.get("bias"), given.get("context")).exp()
        if bound is not None:
            powers = powers.masked_fill(~bound.tensor(), 0.0)
        return attend(self, powers / powers.sum(-1, keepdim=True), x, given.get("context"))


# The same answer


@breaks("dropout is off in eval")
class DropsInEval(MultiAttention):
    """Drops whenever dropout is not zero."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, V = self._project(x, context)
        return self.output(self._concat(softmax_attention(Q, K, V, mask, bias, dropout=self.dropout)))


@breaks("dropout is right on average")
class DropsWithoutScaling(MultiAttention):
    """Does not make up for what it drops."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        weights = self._weights(x, mask, bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) >= self.dropout)
        return self._mix(weights, x, context)


@breaks("dropout is right on average")
class SwapsDropping(MultiAttention):
    """Keeps with the probability with which it should drop, and makes up for the other."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        weights = self._weights(x, mask, bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) < self.dropout) / (1 - self.dropout)
        return self._mix(weights, x, context)


@breaks("dropout is right on average")
class NeverDrops(MultiAttention):
    """Takes a dropout and forgets it."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return self._mix(self._weights(x, mask, bias, context), x, context)


@breaks("same seed, same result")
class OwnRandomness(MultiAttention):
    """Draws from a generator that no seed reaches."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        noise = torch.rand(1, generator=generator).to(x)
        return super()._forward(x, mask, bias, context) + (noise if self.training else 0)


@breaks("state_dict round trip")
class ForgetsItsBuffer(MultiAttention):
    """Keeps a random projection that state_dict does not know of."""

    def __init__(self, embed_dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.features = torch.randn(embed_dim)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x * self.features.to(x), **given)


@breaks("deepcopy is the same, apart")
class SharesWithItsCopy(MultiAttention):
    """A copy keeps the original's parameters."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharesWithItsCopy:
        twin = SharesWithItsCopy(self.embed_dim, self.num_heads).to(self.output.weight.dtype)
        twin.qkv, twin.output = self.qkv, self.output
        return twin.train(self.training)


@breaks("pickle round trip")
class HoldsALambda(MultiAttention):
    """Holds a function that has no name."""

    def __init__(self, embed_dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.activation = lambda x: x


# Asking


@breaks("what is not claimed raises")
class SwallowsTheCache(MultiAttention):
    """Takes a cache, which its card does not claim, and does nothing with it."""

    card = replace(MultiAttention.card, supports=tuple(set(MultiAttention.card.supports) - {"cache"}))

    def forward(self, x: Tensor, *, cache: Any = None, **given: Any) -> Tensor:
        return super().forward(x, **given)


@breaks("a float mask raises and names bias=")
class GuessesTheMask(MultiAttention):
    """Takes a mask of numbers to mean what is not zero."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        return super().forward(x, mask=mask.bool() if isinstance(mask, Tensor) else mask, **given)


@breaks("what does not fit raises")
class PadsTheWidth(MultiAttention):
    """Cuts tokens that are too wide."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x[..., : self.embed_dim], **given)


@breaks("a mask is its Boolean tensor")
class HasTwoPolarities(MultiAttention):
    """Reads a tensor as `nn.MultiheadAttention` does, a Mask as itself."""

    def _admit(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        return super()._admit(x, ~mask if isinstance(mask, Tensor) else mask, **optional)


# Decoding and packing


@breaks("steps with a cache = the full pass")
class StartsAnew(MultiAttention):
    """Lets a step look at the first keys, not at those up to its own place."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and "cache" in given:
            mask = mask.mask.bind(mask.queries, mask.keys, offset=0)
        return super()._forward(x, mask, **given)


@breaks("steps with a cache = the full pass")
class ForgetsThePrompt(MultiAttention):
    """Looks at the new tokens alone."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if "cache" not in given or mask is None:
            return super()._forward(x, mask, **given)
        _, K, V = self._project(x, None)
        given["cache"].append(K, V)
        return super()._forward(x, mask.mask.bind(x.shape[1]) if mask.mask.by_position else None)


@breaks("a windowed cache = the full pass")
class CountsFromTheWindow(MultiAttention):
    """Takes the first key that is left for the first that there was."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and "cache" in given:
            mask = mask.mask.bind(mask.queries, mask.keys, shape=(len(x), self.num_heads))
        return super()._forward(x, mask, **given)


@breaks("a cache can be rolled back")
class RemembersTheLast(MultiAttention):
    """Adds a memory of its own to the cache's, which nobody takes back."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        out, cache = super()._forward(x, mask, **given), given.get("cache")
        if cache is None:
            return out
        last = getattr(cache, "last", [0, 0.0])
        cache.last = [cache.length, x[:, -1:].mean()]
        return out + (last[1] if cache.length - x.shape[1] != last[0] else 0.0)


@breaks("packed sequences are each alone")
class GluesDocuments(MultiAttention):
    """Takes packed sequences for one."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and any(rule.segments(x.shape[1]) for rule in mask.mask.factors):
            mask = causal().bind(x.shape[1]) if self.causal else None
        return super()._forward(x, mask, **given)


@breaks("packed padding changes nothing")
class PacksWithPlaces(MultiAttention):
    """Adds to every token its place, and lets itself be packed all the same."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        start = given["cache"].length if "cache" in given else 0
        place = torch.arange(start, start + x.shape[1], device=x.device)[:, None]
        return super()._forward(x + 0.1 * place, mask, **given)


# Outside of eager Python


@breaks("torch.compile = eager")
class AsksTheNumbers(MultiAttention):
    """Branches on what the tokens hold."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x if x.sum() > 0 else x + 0, **given)


@breaks("torch.compile = eager")
class KnowsTheCompiler(MultiAttention):
    """Answers differently when compiled."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) * (2.0 if torch.compiler.is_compiling() else 1.0)


@breaks("torch.export = eager")
class FixesTheLength(MultiAttention):
    """Makes its positions for the first length that it sees, and repeats them."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[1])
        return super().forward(x * (1 + x.shape[1] % self.first), **given)


@breaks("torch.export = eager")
class FixesTheBatch(MultiAttention):
    """Reshapes with the batch that it saw first."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[0])
        return super().forward(x.reshape(self.first, -1, self.embed_dim), **given)


@breaks("ONNX = eager")
class KnowsTheExporter(MultiAttention):
    """Doubles its answer in an ONNX graph alone."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) * (2.0 if torch.onnx.is_in_onnx_export() else 1.0)


@breaks("ONNX = eager")
class HasNoOperator(MultiAttention):
    """Computes with an operator that ONNX has not."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return torch.special.airy_ai(super().forward(x, **given))
