"""The attention weights: they match the output, and reading them does not change it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import SEED, LayerUnderTest, M, N
from attnlab.checks.probes import (
    EXACT,
    describe,
    difference,
    differences,
    every_configuration,
    exact,
    gradient,
    located,
)
from attnlab.checks.registry import Measurement, Values, check
from attnlab.masks import Mask, from_tensor

BATCH = 11
BLOCK = 64

LONG = 307
"""Long enough that some backends compute the queries in chunks."""

ABOVE_BLOCK = 67


@check("weights_sum_to_one", needs=("weights", "probabilities"), limit=exact)
@every_configuration
def sum_to_one(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The difference between 1 and the sum of the weights of each query that is not fully masked; no weight below 0."""
    layer, x = case.build(is_causal), case.tokens()
    weights = case.attention_weights(layer, x, mask)
    expected = case.allowed_per_head(is_causal, mask, x).any(-1).to(weights)  # 0 for a fully masked row
    return max(difference(weights.sum(-1), expected.expand(weights.shape[:-1])), -weights.min().item())


@check("masked_weights_are_zero", needs=("weights",))
@every_configuration
def masked_weights(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The largest weight of a masked key, including fully masked rows."""
    layer, x = case.build(is_causal), case.tokens()
    if "arbitrary_mask" in case.capabilities:
        rows = from_tensor((torch.arange(N, device=x.device) != 2).unsqueeze(1).expand(N, N))
        mask = rows if mask is None else mask & rows
    weights = case.attention_weights(layer, x, mask)
    return difference(weights * ~case.allowed_per_head(is_causal, mask, x), torch.zeros_like(weights))


@check("reading_weights_keeps_output", needs=("weights",))
@every_configuration
def reading_weights(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The difference between the outputs before and after the weights are read, in eval mode and in training."""
    x = case.tokens()
    before: list[Tensor] = []
    after: list[Tensor] = []
    for train in (False, True):
        layer = case.build(is_causal, train=train)
        for outs in (before, after):
            if outs is after:
                case.attention_weights(layer, x, mask)
            torch.manual_seed(SEED)
            outs.append(case(layer, x, mask))
    return differences(after, before)


@check("weights_exclude_dropout", needs=("weights", "dropout"), limit=exact)
def no_dropout(case: LayerUnderTest) -> Values:
    """The difference between the weights in training and in eval mode."""
    layer, x = case.layer(dropout=case.dropout), case.tokens()
    expected = case.attention_weights(layer, x)
    yield difference(case.attention_weights(layer.train(), x), expected), "training differs from eval mode"


@check("weights_reproduce_output", needs=("weights", "apply_weights"), limit=exact)
def reproduce_output(case: LayerUnderTest) -> Values:
    """The difference between ``apply_weights(attention_weights(x), x)`` and the output, at 7, 64 and 307 tokens."""
    for length in (N, BLOCK, LONG):
        for is_causal, mask in case.configurations(length=length):
            if length == LONG and mask is not None:
                continue
            layer, x = case.build(is_causal), case.tokens(length=length)
            contexts: list[dict[str, Tensor]] = [{}]
            if "context" in case.capabilities and mask is None:
                keys = (length,) if is_causal else (M, 2 * M + 1)
                contexts += [{"context": case.tokens(length=count, seed=1)} for count in keys]
            for context in contexts:
                with located(where := describe(is_causal, mask)):
                    weights = case.attention_weights(layer, x, mask, **context)
                    out = case.apply_weights(layer, weights, x, mask, **context)
                    yield difference(out, case(layer, x, mask, **context)), f"{length} tokens, {where}"


@check("weights_are_per_head", needs=("weights",))
def per_head(case: LayerUnderTest) -> Measurement:
    """Whether weights averaged over the heads are returned in place of one attention matrix per head.

    With ``apply_weights``: 1 if the output does not depend on which head has which weights. Without it: the distance
    of the output from a linear function of each head's weighted tokens, if all heads have equal weights.
    """
    layer, x = case.layer(), case.tokens(batch=BATCH)
    weights = case.attention_weights(layer, x)
    heads = weights.shape[1]
    if heads != case.num_heads:
        return Measurement(1, 0, f"the weights have {heads} heads, and the layer has {case.num_heads}")
    if heads == 1:
        raise NotApplicable("it has one head")
    if "apply_weights" in case.capabilities:
        swapped = case.apply_weights(layer, weights.roll(1, 1), x)
        is_equal = difference(swapped, case.apply_weights(layer, weights, x)) <= case.exact
        return Measurement(float(is_equal), 0, "apply_weights gives the same output after the heads are permuted")
    if difference(weights, weights[:, :1].expand_as(weights)) > case.exact:
        return Measurement(0, 0, "the heads differ")
    # The values are affine: out_i = c + Σ_h U_h Σ_j w_hij x_j, so a least-squares fit has no residual.
    features = (weights @ x.unsqueeze(1)).transpose(1, 2).flatten(2).flatten(0, 1)
    features = torch.cat([features, torch.ones_like(features[:, :1])], -1)
    out = case(layer, x).flatten(0, 1).detach()
    fitted = features @ (torch.linalg.pinv(features) @ out)
    return Measurement(difference(fitted, out), 1e-3, "all heads have equal weights, which do not give the output")


@check("attn_bias_adds_to_scores", needs=("attn_bias", "weights", "probabilities", "apply_weights"), limit=exact)
def bias_adds_to_scores(case: LayerUnderTest) -> Values:
    """The difference from the weights without a bias times ``exp(attn_bias)``, normalized again.

    At 7 and at 64 tokens, in eval mode and in training, with a context where the layer takes one.
    """
    runs = [(N, *configuration) for configuration in case.configurations()]
    for length, is_causal, mask in [*runs, *((BLOCK, is_causal, None) for is_causal in case.causal_choices)]:
        for extra in case.extras(is_causal, length=length):
            if "attn_bias" not in extra or (mask is not None and "context" in extra):
                continue
            layer, x = case.build(is_causal), case.tokens(length=length)
            context = {name: tensor for name, tensor in extra.items() if name == "context"}
            with located(where := describe(is_causal, mask)):
                expected = case.attention_weights(layer, x, mask, **context) * extra["attn_bias"].exp()
                expected = expected / expected.sum(-1, keepdim=True).clamp(min=1e-300)  # a fully masked row stays zero
                out = case.apply_weights(layer, expected, x, mask, **context)
                pairs = [(case.attention_weights(layer, x, mask, **extra), expected)]
                pairs += [(case(case.build(is_causal, train=train), x, mask, **extra), out) for train in (False, True)]
                yield differences(*zip(*pairs, strict=True)), f"{length} tokens, {where}"


@check("cross_attention", needs=("context",), limit=exact)
def cross_attention(case: LayerUnderTest) -> Values:
    """The difference between ``context=x`` and self-attention, and the output for an empty context, which is zero.

    Also the number of tokens that the output does not depend on, for shorter and longer contexts.
    """
    layer, x = case.build(False), case.tokens()
    yield difference(case(layer, x, context=x), case(layer, x)), "context=x differs from self-attention"
    empty = case(layer, x, context=x[:, :0])
    yield difference(empty, torch.zeros_like(x)), "an empty context does not give zeros"
    for length in (1, M, 2 * M + 1):
        context = case.tokens(length=length, seed=1).requires_grad_()
        out = case(layer, x, context=context)
        unused = (gradient(out.square().sum(), context).abs().amax(-1) == 0).sum().item()
        where = f"{length} tokens of context: the output has another shape or ignores tokens"
        yield unused + (out.shape != x.shape), where


@check("attention_map_matches_weights", needs=("contract", "weights"), limit=EXACT)
@every_configuration
def attention_map(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The difference between the queries of an `AttentionMap` and the same values of the attention weights.

    Selected rows and heads, streamed rows, sums over blocks of keys, entropy, largest weights, and ``apply`` on the
    identity.
    """
    layer = case.build(is_causal)
    pairs: list[tuple[Tensor, Tensor]] = []
    for length in (N, ABOVE_BLOCK) if mask is None else (N,):
        x, blocks = case.tokens(length=length), torch.arange(length, device=case.device) % 3
        weights = case.attention_weights(layer, x, mask)
        attention = layer.attention_map(x, **({} if mask is None else {"mask": mask}))  # type: ignore[operator]
        eye = torch.eye(length, dtype=x.dtype, device=x.device)[None, None]
        top, keys = attention.top(2)
        pairs += [
            (attention.materialize(), weights),
            (attention.apply(eye), weights),
            (attention.materialize(rows=[2, 0], heads=[-1]), weights[:, [-1]][:, :, [2, 0]]),
            (torch.cat([part for _, part in attention.stream(3)], 2), weights),
            (attention.pooled(blocks), weights @ nn.functional.one_hot(blocks).to(x)),
            (top, weights.topk(2).values),
            (weights.gather(-1, keys), top),
        ]
        if "probabilities" in case.capabilities:
            pairs.append((attention.entropy(), torch.special.entr(weights).sum(-1)))
    return differences(*zip(*pairs, strict=True))
