"""Equal calls give equal outputs: dropout in training only, seeds, copies, and no state across calls."""

from __future__ import annotations

import io
import pickle
import random
from copy import deepcopy
from itertools import product

import numpy as np
import torch

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import SEED, LayerUnderTest, N
from attnlab.checks.probes import EXACT, NOISE_SCALE, describe, difference, differences, exact, gradients
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask

SAMPLES = {N: 4096, 64: 256}
"""The number of outputs that are drawn for each length."""

BLOCK = 64
CALLS = 9
"""Enough calls to detect a layer that changes after the first few."""


@check("no_dropout_in_eval", needs=("dropout",), limit=exact)
def no_dropout_in_eval(case: LayerUnderTest) -> Values:
    """The difference between two outputs in eval mode, and from the same layer built with dropout=0."""
    layer, x = case.layer(dropout=case.dropout), case.tokens()
    where = "in eval mode, between two calls and from dropout=0"
    first, second = case(layer, x), case(layer, x)
    yield difference(second, first), where
    if case.can_choose("dropout"):
        without = case.layer(dropout=0.0)
        without.load_state_dict(layer.state_dict(), strict=False)  # a layer may draw a seed only with dropout
        yield difference(first, case(without, x)), where


@check("dropout_is_unbiased", needs=("dropout",), limit=5)
def dropout_is_unbiased(case: LayerUnderTest) -> Values:
    """The distance between the mean output in training and the output in eval mode, in standard errors.

    The mean is over 4,096 outputs of 7 tokens, and over 256 outputs of 64 tokens.
    """
    if not getattr(case.layer(), "linear_in_weights", True):
        raise NotApplicable("its output is not linear in its weights")
    for length, count in SAMPLES.items():
        layer, x = case.layer(dropout=case.dropout), case.tokens(1, length)
        expected = case(layer, x)
        torch.manual_seed(SEED)
        with torch.no_grad():
            samples = case(layer.train(), x.repeat(count, 1, 1))
        spread = samples.std(0)
        if not bool((spread > EXACT).any()):
            yield float("inf"), f"nothing is dropped in training, at {length} tokens"
        errors = (samples.mean(0) - expected[0]).abs() / (spread / count**0.5 + EXACT)
        yield errors.max().item(), f"the mean in training of {length} tokens, with dropout={case.dropout}"


@check("seed_reproducibility")
def seed_reproducibility(case: LayerUnderTest) -> Values:
    """The difference between two layers that are built, and called in training, with the same seed."""
    x, outs = case.tokens(), []
    for _ in range(2):
        layer = case.layer(train=True, **case.dropout_options)
        torch.manual_seed(SEED)
        outs.append(case(layer, x))
    yield difference(*outs), "two layers built and called in training with one seed"


@check("state_dict_round_trip")
def state_dict_round_trip(case: LayerUnderTest) -> Values:
    """The difference after a state_dict was saved and loaded, strictly, into a layer with other parameters."""
    layer, other, x = case.layer(), case.layer(seed=SEED + 1), case.tokens()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True, map_location=case.device))
    yield difference(case(other, x), case(layer, x)), "a layer that loaded the state_dict of another"


@check("deepcopy_is_independent")
def deepcopy_is_independent(case: LayerUnderTest) -> Values:
    """The difference between a layer and its deepcopy, and the change of the layer when its copy is modified."""
    layer, x = case.layer(), case.tokens()
    before = case(layer, x)
    copied = deepcopy(layer)
    yield difference(case(copied, x), before), "the copy differs"
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    yield difference(case(layer, x), before), "the original changes with its copy"


@check("pickle_round_trip")
def pickle_round_trip(case: LayerUnderTest) -> Values:
    """The difference after a layer that was called was pickled and unpickled."""
    layer, x = case.layer(), case.tokens()
    before = case(layer, x)
    yield difference(case(pickle.loads(pickle.dumps(layer)), x), before), "an unpickled layer"


@check("training_matches_eval_without_dropout", needs=("dropout",), limit=exact)
def training_matches_eval(case: LayerUnderTest) -> Values:
    """The difference between training and eval mode, in outputs and gradients, of a layer built with dropout=0."""
    if not case.can_choose("dropout"):
        raise NotApplicable("its dropout cannot be chosen")
    for is_causal in case.causal_choices:
        layer = case.build(is_causal, dropout=0.0)
        for length in (N, BLOCK):
            extras = [(None, extra) for extra in case.extras(is_causal, length=length)[1:]]
            for mask, extra in [*((mask, {}) for mask in _masks(case, is_causal, length)), *extras]:
                x = case.tokens(length=length)
                leaves = [leaf.requires_grad_() for leaf in (x, *extra.values())]
                results = []
                for train in (True, False):
                    out = case(layer.train(train), x, mask, **extra)
                    results.append([out, *gradients(out.square().sum(), leaves)])
                where = " and ".join([describe(is_causal, mask), *extra])
                yield differences(*results), f"{length} tokens in training ({where})"


def _masks(case: LayerUnderTest, is_causal: bool, length: int) -> list[Mask | None]:
    """No mask and one of each kind; for long sequences only the first."""
    return [None, *case.masks(length=length, is_causal=is_causal)[: None if length == N else 1]]


@check("eval_is_stateless")
def eval_is_stateless(case: LayerUnderTest) -> Values:
    """The difference between a new layer and one that was called before in eval mode; changes of its state_dict count.

    The earlier calls use other tokens, batches, lengths and masks, read the attention weights, and run in inference
    mode.
    """
    for is_causal in case.causal_choices:
        used = case.build(is_causal)
        before = {name: value.clone() for name, value in used.state_dict().items()}
        lengths, masks = (N, BLOCK, BLOCK + 3), case.masks(is_causal=is_causal)
        calls: list[tuple[int, Mask | None]] = [*((n, None) for n in lengths), *((N, mask) for mask in masks)]
        expected = [case(case.build(is_causal), case.tokens(length=n), mask) for n, mask in calls]
        with torch.inference_mode():
            for length in reversed(lengths):
                case(used, case.tokens(length=length, seed=1))
        with torch.no_grad():
            for length in (1, *lengths, *(2,) * CALLS):
                case(used, NOISE_SCALE * case.tokens(batch=3, length=length, seed=2))
        for other in masks:
            case(used, case.tokens(seed=3), other)
            if "weights" in case.capabilities:
                case.attention_weights(used, case.tokens(seed=3), other)
        for (length, mask), out in zip(calls, expected, strict=True):
            again = case(used, case.tokens(length=length).requires_grad_(), mask)
            again.sum().backward()
            yield difference(again, out), f"{length} tokens after other calls ({describe(is_causal, mask)})"
        for name, value in used.state_dict().items():
            yield float(not torch.equal(value, before[name])), f"calls in eval mode change {name} of the state_dict"


@check("eval_ignores_global_seed")
def eval_ignores_global_seed(case: LayerUnderTest) -> Values:
    """The change of outputs and attention weights in eval mode under other seeds of torch, NumPy and Python."""
    states = np.random.get_state(), random.getstate()
    try:
        for is_causal, length in product(case.causal_choices, (N, BLOCK)):
            layer, x = case.build(is_causal, **case.dropout_options), case.tokens(length=length)
            for mask in _masks(case, is_causal, length):
                results = []
                for seed in (SEED, SEED + 1):
                    torch.manual_seed(seed)
                    np.random.seed(seed)
                    random.seed(seed)
                    outs = [case(layer, x, mask)]
                    if "weights" in case.capabilities and length == N:
                        outs.append(case.attention_weights(layer, x, mask))
                    results.append(outs)
                yield differences(*results), f"{length} tokens under another seed ({describe(is_causal, mask)})"
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
