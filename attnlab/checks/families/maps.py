"""Who looks at whom: the weights are what they are said to be, and looking at them changes nothing."""

from __future__ import annotations

from functools import partial

import torch

from attnlab.checks.capabilities import NotClaimed
from attnlab.checks.layer import SEED, M, N, Subject
from attnlab.checks.probes import EXACT, attempt, difference, gradient, said, worst, worst_way
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, from_tensor

BATCH = 11
BLOCK = 64
MANY = 307
"""So many tokens that a fast path computes a part of the queries at a time."""

LONG = 67
"""Beyond a block of 64: what goes block by block must agree as well."""


@promise("weights sum to one", needs=("weights", "probabilities"))
def one_in_sum(subject: Subject) -> Measure:
    """How far the weights of a head that may look at something are from one in sum, or one of them below zero."""

    def measured(causality: bool, mask: Mask | None) -> float:
        layer, x = subject.build(causality), subject.tokens()
        weights = subject.attention_weights(layer, x, mask)
        expected = subject.permitted_heads(causality, mask, x).any(-1).to(weights)  # 0 for an empty row
        return max(difference(weights.sum(-1), expected.expand(weights.shape[:-1])), -weights.min().item())

    return worst_way(subject, measured, subject.exact)


@promise("weights are zero where masked", needs=("weights",))
def zero_where_forbidden(subject: Subject) -> Measure:
    """The largest weight of a key that may not be looked at, rows that may look at nothing among them."""

    def measured(causality: bool, mask: Mask | None) -> float:
        layer, x = subject.build(causality), subject.tokens()
        if "arbitrary_mask" in subject.claims:
            open_rows = from_tensor((torch.arange(N, device=x.device) != 2).unsqueeze(1).expand(N, N))
            mask = open_rows if mask is None else mask & open_rows
        forbidden = ~subject.permitted_heads(causality, mask, x)
        weights = subject.attention_weights(layer, x, mask)
        return difference(weights * forbidden, torch.zeros_like(weights))

    return worst_way(subject, measured, limit=0)


@promise("asking for weights changes nothing", needs=("weights",))
def asking_changes_nothing(subject: Subject) -> Measure:
    """The difference between the outputs before and after the weights were asked for, in eval and in training."""

    def measured(causality: bool, mask: Mask | None) -> float:
        found, x = 0.0, subject.tokens()
        for train in (False, True):
            layer = subject.build(causality, train=train)
            outs = []
            for ask in (False, True):
                if ask:
                    subject.attention_weights(layer, x, mask)
                torch.manual_seed(SEED)
                outs.append(subject(layer, x, mask))
            found = max(found, difference(outs[1], outs[0]))
        return found

    return worst_way(subject, measured, limit=0)


@promise("weights hold no dropout", needs=("weights", "dropout"))
def no_dropout(subject: Subject) -> Measure:
    """The difference between the weights in training and in eval."""
    layer, x = subject.layer(dropout=subject.dropout), subject.tokens()
    expected = subject.attention_weights(layer, x)
    return Measure(
        difference(subject.attention_weights(layer.train(), x), expected), subject.exact, "training differs from eval"
    )


@promise("weights make the output", needs=("weights", "mix"))
def they_make_the_output(subject: Subject) -> Measure:
    """The difference between ``mix(weights(x), x)`` and the output, at 7, 64 and 307 tokens."""

    def measured(causality: bool, mask: Mask | None, length: int) -> float:
        layer, x = subject.build(causality), subject.tokens(length=length)
        mixed = subject.apply_weights(layer, subject.attention_weights(layer, x, mask), x, mask)
        found = difference(mixed, subject(layer, x, mask))
        if "context" in subject.claims and mask is None:
            for keys in (length,) if causality else (M, 2 * M + 1):
                context = subject.tokens(length=keys, seed=1)
                weights = subject.attention_weights(layer, x, context=context)
                mixed = subject.apply_weights(layer, weights, x, context=context)
                found = max(found, difference(mixed, subject(layer, x, context=context)))
        return found

    return worst(
        (
            (
                attempt(partial(measured, length=length), causality, mask),
                f"{length} tokens, {said(causality, mask)}",
            )
            for length in (N, BLOCK, MANY)
            for causality in subject.causal_choices
            for mask in (None, *subject.masks(length=length, causality=causality)[: 0 if length == MANY else None])
        ),
        subject.exact,
    )


@promise("weights are per head", needs=("weights",))
def per_head(subject: Subject) -> Measure:
    """Whether weights averaged over the heads are returned in place of one attention matrix per head.

    With ``mix``: whether the output does not depend on which head has which weights. Without it: how far the output is
    from a linear function of each head's weighted tokens, where all heads are given the same weights.
    """
    layer, x = subject.layer(), subject.tokens(batch=BATCH)
    weights = subject.attention_weights(layer, x)
    heads = weights.shape[1]
    if heads != subject.num_heads:
        return Measure(1, 0, f"the weights are those of {heads} heads, and the layer has {subject.num_heads}")
    if heads == 1:
        raise NotClaimed("it has one head")
    if "mix" in subject.claims:
        swapped = subject.apply_weights(layer, weights.roll(1, 1), x)
        fixed = int(difference(swapped, subject.apply_weights(layer, weights, x)) <= subject.exact)
        return Measure(fixed, 0, "mix gives the same output when the heads exchange their weights")
    if difference(weights, weights[:, :1].expand_as(weights)) > subject.exact:
        return Measure(0, 0, "the heads differ")
    # Affine values: out_i = c + Σ_h U_h Σ_j w_hij x_j, so the residual of a least-squares fit is zero.
    features = (weights @ x.unsqueeze(1)).transpose(1, 2).flatten(2).flatten(0, 1)
    features = torch.cat([features, torch.ones_like(features[:, :1])], -1)
    out = subject(layer, x).flatten(0, 1).detach()
    fitted = features @ (torch.linalg.pinv(features) @ out)
    return Measure(difference(fitted, out), 1e-3, "all heads are given the same weights, which do not give the output")


@promise("bias adds to the scores", needs=("attn_bias", "weights", "probabilities", "mix"))
def bias_as_defined(subject: Subject) -> Measure:
    """The difference from what the bias means: weights times ``exp(bias)``, made one in sum again.

    At 7 and at 64 tokens, in eval and in training, with a context where that is taken.
    """

    def measured(causality: bool, mask: Mask | None, length: int = N) -> float:
        found = 0.0
        for extra in subject.extras(causality, length=length):
            if "attn_bias" not in extra or (mask is not None and "context" in extra):
                continue
            layer, x = subject.build(causality), subject.tokens(length=length)
            source = {name: value for name, value in extra.items() if name == "context"}
            expected = subject.attention_weights(layer, x, mask, **source) * extra["attn_bias"].exp()
            expected = expected / expected.sum(-1, keepdim=True).clamp(min=1e-300)  # a fully masked row stays zero
            mixed = subject.apply_weights(layer, expected, x, mask, **source)
            found = max(found, difference(subject.attention_weights(layer, x, mask, **extra), expected))
            for train in (False, True):
                out = subject(subject.build(causality, train=train), x, mask, **extra)
                found = max(found, difference(out, mixed))
        return found

    return worst(
        (
            (attempt(partial(measured, length=length), causality, mask), f"{length} tokens, {said(causality, mask)}")
            for length in (N, BLOCK)
            for causality, mask in (subject.ways() if length == N else ((c, None) for c in subject.causal_choices))
        ),
        subject.exact,
    )


@promise("context may be another sequence", needs=("context",))
def another_sequence(subject: Subject) -> Measure:
    """The largest difference: its own sequence as context is self-attention, an empty one gives zeros.

    Shorter and longer ones are taken, and every token of them is heard.
    """
    layer, x = subject.build(False), subject.tokens()
    itself = difference(subject(layer, x, context=x), subject(layer, x))
    empty = subject(layer, x, context=x[:, :0])
    measured = [
        (itself, "context=x differs from self-attention"),
        (difference(empty, torch.zeros_like(x)), "an empty context does not give zeros"),
    ]
    for length in (1, M, 2 * M + 1):
        context = subject.tokens(length=length, seed=1).requires_grad_()
        out = subject(layer, x, context=context)
        heard = gradient(out.square().sum(), context).abs().amax(-1)
        deaf = (heard == 0).sum().item() + (0 if out.shape == x.shape else 1)
        measured.append((deaf, f"{length} tokens of context: not all are heard, or the output has another shape"))
    return worst(measured, subject.exact)


@promise("the core is the map", needs=("contract", "weights"))
def core_is_the_map(subject: Subject) -> Measure:
    """The difference between what a core says without writing its map down, and the same of the weights.

    Rows and heads by choice and by stream, sums over blocks of keys, entropy, largest weights, and what it makes of the
    identity.
    """
    blocks = torch.arange(LONG, device=subject.device) % 3

    def measured(causality: bool, mask: Mask | None) -> float:
        found = 0.0
        layer = subject.build(causality)
        for length in (N, LONG) if mask is None else (N,):
            x = subject.tokens(length=length)
            weights = subject.attention_weights(layer, x, mask)
            core = layer.attention_map(x, **({} if mask is None else {"mask": mask}))  # type: ignore[operator]
            eye = torch.eye(length, dtype=x.dtype, device=x.device)[None, None]
            indicators = torch.eye(3, dtype=x.dtype, device=x.device)[blocks[:length]]
            largest, keys = core.top(2)
            pairs = [
                (core.materialize(), weights),
                (core.apply(eye), weights),
                (core.materialize(rows=[2, 0], heads=[-1]), weights[:, [-1]][:, :, [2, 0]]),
                (torch.cat([part for _, part in core.stream(3)], 2), weights),
                (core.pooled(blocks[:length]), weights @ indicators),
                *([(core.entropy(), torch.special.entr(weights).sum(-1))] if "probabilities" in subject.claims else []),
                (largest, weights.topk(2).values),
                (weights.gather(-1, keys), largest),
            ]
            found = max(found, *(difference(ours, true) for ours, true in pairs))
        return found

    return worst_way(subject, measured, EXACT)
