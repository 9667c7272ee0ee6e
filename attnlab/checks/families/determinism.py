"""Equal calls give equal outputs: dropout in training only, seeds, copies, and no state across calls."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import SEED, LayerUnderTest, N
from attnlab.checks.probes import EXACT, NOISE_SCALE, describe, difference, differences, gradients, largest
from attnlab.checks.registry import Measurement, check
from attnlab.masks import Mask

SAMPLES = {N: 4096, 64: 256}
"""The number of outputs that are drawn for each length."""

BLOCK = 64
CALLS = 9
"""Enough calls to detect a layer that changes after the first few."""


@check("no_dropout_in_eval", needs=("dropout",))
def no_dropout_in_eval(case: LayerUnderTest) -> Measurement:
    """The difference between two outputs in eval mode, and from the same layer built with dropout=0."""
    layer, x = case.layer(dropout=case.dropout), case.tokens()
    first, second = case(layer, x), case(layer, x)
    value = difference(second, first)
    if case.can_choose("dropout"):
        without = case.layer(dropout=0.0)
        without.load_state_dict(layer.state_dict(), strict=False)  # a layer may draw a seed only with dropout
        value = max(value, difference(first, case(without, x)))
    return Measurement(value, case.exact, "in eval mode, between two calls and from dropout=0")


@check("dropout_is_unbiased", needs=("dropout",))
def dropout_is_unbiased(case: LayerUnderTest) -> Measurement:
    """The distance between the mean output in training and the output in eval mode, in standard errors.

    The mean is over 4,096 outputs of 7 tokens, and over 256 outputs of 64 tokens.
    """
    if not getattr(case.layer(), "linear_in_weights", True):
        raise NotApplicable("its output is not linear in its weights")

    def measure() -> Iterator[tuple[float, str]]:
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

    return largest(measure(), 5)


@check("seed_reproducibility")
def seed_reproducibility(case: LayerUnderTest) -> Measurement:
    """The difference between two layers that are built, and called in training, with the same seed."""
    x, outs = case.tokens(), []
    for _ in range(2):
        layer = case.layer(train=True, **case.dropout_options)
        torch.manual_seed(SEED)
        outs.append(case(layer, x))
    return Measurement(difference(outs[1], outs[0]), 0, "two layers built and called in training with one seed")


@check("state_dict_round_trip")
def state_dict_round_trip(case: LayerUnderTest) -> Measurement:
    """The difference after a state_dict was saved and loaded, strictly, into a layer with other parameters."""
    layer, other, x = case.layer(), case.layer(seed=SEED + 1), case.tokens()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True, map_location=case.device))
    return Measurement(difference(case(other, x), case(layer, x)), 0, "a layer that loaded the state_dict of another")


@check("deepcopy_is_independent")
def deepcopy_is_independent(case: LayerUnderTest) -> Measurement:
    """The difference between a layer and its deepcopy, and the change of the layer when its copy is modified."""
    layer, x = case.layer(), case.tokens()
    before = case(layer, x)
    copied = deepcopy(layer)
    copy_error = difference(case(copied, x), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    change = difference(case(layer, x), before)
    detail = "the copy differs" if copy_error else "the original changes with its copy"
    return Measurement(max(copy_error, change), 0, detail)


@check("pickle_round_trip")
def pickle_round_trip(case: LayerUnderTest) -> Measurement:
    """The difference after a layer that was called was pickled and unpickled."""
    layer, x = case.layer(), case.tokens()
    before = case(layer, x)
    return Measurement(difference(case(pickle.loads(pickle.dumps(layer)), x), before), 0, "an unpickled layer")


@check("training_matches_eval_without_dropout", needs=("dropout",))
def training_matches_eval(case: LayerUnderTest) -> Measurement:
    """The difference between training and eval mode, in outputs and gradients, of a layer built with dropout=0."""
    if not case.can_choose("dropout"):
        raise NotApplicable("its dropout cannot be chosen")

    def measure() -> Iterator[tuple[float, str]]:
        for is_causal in case.causal_choices:
            layer = case.build(is_causal, dropout=0.0)
            for length in (N, BLOCK):
                masks = (None, *case.masks(length=length, is_causal=is_causal)[: None if length == N else 1])
                calls: list[tuple[Mask | None, dict[str, Tensor]]] = [(mask, {}) for mask in masks]
                calls += [(None, extra) for extra in case.extras(is_causal, length=length)[1:]]
                for mask, extra in calls:
                    x = case.tokens(length=length)
                    leaves = [leaf.requires_grad_() for leaf in (x, *extra.values())]
                    results = []
                    for train in (True, False):
                        out = case(layer.train(train), x, mask, **extra)
                        results.append([out, *gradients(out.square().sum(), leaves)])
                    where = " and ".join([describe(is_causal, mask), *extra])
                    yield differences(*results), f"{length} tokens in training ({where})"

    return largest(measure(), case.exact)


@check("eval_is_stateless")
def eval_is_stateless(case: LayerUnderTest) -> Measurement:
    """The difference between a new layer and one that was called before in eval mode; changes of its state_dict count.

    The earlier calls use other tokens, batches, lengths and masks, read the attention weights, and run in inference
    mode.
    """

    def measure() -> Iterator[tuple[float, str]]:
        for is_causal in case.causal_choices:
            used = case.build(is_causal)
            before = {name: value.clone() for name, value in used.state_dict().items()}
            lengths = (N, BLOCK, BLOCK + 3)
            calls: list[tuple[int, Mask | None]] = [
                *((length, None) for length in lengths),
                *((N, mask) for mask in case.masks(is_causal=is_causal)),
            ]
            expected = [case(case.build(is_causal), case.tokens(length=n), mask) for n, mask in calls]
            with torch.inference_mode():
                for length in reversed(lengths):
                    case(used, case.tokens(length=length, seed=1))
            with torch.no_grad():
                for length in (1, *lengths, *(2,) * CALLS):
                    case(used, NOISE_SCALE * case.tokens(batch=3, length=length, seed=2))
            for other in case.masks(is_causal=is_causal):
                case(used, case.tokens(seed=3), other)
                if "weights" in case.capabilities:
                    case.attention_weights(used, case.tokens(seed=3), other)
            for (length, mask), out in zip(calls, expected, strict=True):
                again = case(used, case.tokens(length=length).requires_grad_(), mask)
                again.sum().backward()
                yield difference(again, out), f"{length} tokens after other calls ({describe(is_causal, mask)})"
            for name, value in used.state_dict().items():
                yield float(not torch.equal(value, before[name])), f"calls in eval mode change {name} of the state_dict"

    return largest(measure(), 0)


@check("eval_ignores_global_seed")
def eval_ignores_global_seed(case: LayerUnderTest) -> Measurement:
    """The change of outputs and attention weights in eval mode under other seeds of torch, NumPy and Python."""
    states = np.random.get_state(), random.getstate()

    def measure() -> Iterator[tuple[float, str]]:
        for is_causal in case.causal_choices:
            layer = case.build(is_causal, **case.dropout_options)
            for length in (N, BLOCK):
                x = case.tokens(length=length)
                for mask in (None, *case.masks(length=length, is_causal=is_causal)[: None if length == N else 1]):
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

    try:
        return largest(measure(), 0)
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
