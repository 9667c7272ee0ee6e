"""The same question, the same answer: dropout only in training, seeds that hold, copies that are copies."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from attnlab.checks.capabilities import NotClaimed
from attnlab.checks.layer import SEED, N, Subject
from attnlab.checks.probes import EXACT, SHOUT, difference, gradient, gradients, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask

SAMPLES = {N: 4096, 64: 256}
"""How many outputs are drawn, by length."""

BLOCK = 64
CALLS = 9
"""So many calls that a layer which changes after the first few is found."""

SEEDS = (SEED, SEED + 1)


@promise("dropout is off in eval", needs=("dropout",))
def off_in_eval(subject: Subject) -> Measure:
    """The difference between two answers in eval, and from the same layer without dropout."""
    layer, x = subject.layer(dropout=subject.dropout), subject.tokens()
    first, second = subject(layer, x), subject(layer, x)
    found = difference(second, first)
    if subject.can_choose("dropout"):
        without = subject.layer(dropout=0.0)
        without.load_state_dict(layer.state_dict(), strict=False)  # who draws for dropout when made draws others else
        found = max(found, difference(first, subject(without, x)))
    return Measure(found, subject.exact, "in eval, against asking again and against dropout=0")


@promise("dropout is right on average", needs=("dropout",))
def right_on_average(subject: Subject) -> Measure:
    """How many standard errors the mean of many outputs in training is from the output in eval.

    4096 of 7 tokens and 256 of 64.
    """
    if not getattr(subject.layer(), "linear_in_weights", True):
        raise NotClaimed("its output is not linear in its weights")

    def measured() -> Iterator[tuple[float, str]]:
        for length, count in SAMPLES.items():
            layer, x = subject.layer(dropout=subject.dropout), subject.tokens(1, length)
            expected = subject(layer, x)
            torch.manual_seed(SEED)
            with torch.no_grad():
                samples = subject(layer.train(), x.repeat(count, 1, 1))
            spread = samples.std(0)
            if not bool((spread > EXACT).any()):
                yield float("inf"), f"nothing is ever dropped in training, at {length} tokens"
            errors = (samples.mean(0) - expected[0]).abs() / (spread / count**0.5 + EXACT)
            yield errors.max().item(), f"the mean in training of {length} tokens, with dropout={subject.dropout}"

    return worst(measured(), 5)


@promise("same seed, same result")
def same_seed(subject: Subject) -> Measure:
    """The difference between two layers that were made, and asked in training, with the same seed."""
    x, outs = subject.tokens(), []
    for _ in range(2):
        chosen = "dropout" in subject.claims and subject.can_choose("dropout")
        layer = subject.layer(train=True, dropout=subject.dropout) if chosen else subject.layer(train=True)
        torch.manual_seed(SEED)
        outs.append(subject(layer, x))
    return Measure(difference(outs[1], outs[0]), 0, "two layers made and asked in training with one seed")


@promise("state_dict round trip")
def state_dict(subject: Subject) -> Measure:
    """The difference after the weights were saved and loaded, strictly, into a layer with others."""
    layer, other, x = subject.layer(), subject.layer(seed=SEED + 1), subject.tokens()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True, map_location=subject.device))
    return Measure(difference(subject(other, x), subject(layer, x)), 0, "a layer that loaded what another saved")


@promise("deepcopy is the same, apart")
def deep_copy(subject: Subject) -> Measure:
    """The difference of a copy from its original, also after the copy was changed."""
    layer, x = subject.layer(), subject.tokens()
    before = subject(layer, x)
    copied = deepcopy(layer)
    same = difference(subject(copied, x), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    apart = difference(subject(layer, x), before)
    return Measure(max(same, apart), 0, "the copy differs" if same else "the original changes with its copy")


@promise("pickle round trip")
def pickled(subject: Subject) -> Measure:
    """The difference after the whole layer was pickled and unpickled, once it has been used."""
    layer, x = subject.layer(), subject.tokens()
    before = subject(layer, x)
    return Measure(difference(subject(pickle.loads(pickle.dumps(layer)), x), before), 0, "a layer unpickled")


@promise("training without dropout = eval", needs=("dropout",))
def training_is_eval(subject: Subject) -> Measure:
    """The difference between training and eval, outputs and gradients, in a layer built with dropout=0."""
    if not subject.can_choose("dropout"):
        raise NotClaimed("its dropout cannot be chosen")

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality, dropout=0.0)
            for length in (N, BLOCK):
                x = subject.tokens(length=length).requires_grad_()
                for mask in (None, *subject.masks(length=length, causality=causality)[: None if length == N else 1]):
                    outs = [subject(layer.train(train), x, mask) for train in (False, True)]
                    slopes = [gradient(out.square().sum(), x) for out in outs]
                    where = f"{length} tokens in training ({said(causality, mask)})"
                    yield max(difference(*reversed(outs)), difference(*reversed(slopes))), where
                for extra in subject.extras(causality, length=length)[1:]:
                    leaves = [x, *(value.requires_grad_() for value in extra.values())]
                    outs = [subject(layer.train(train), x, **extra) for train in (False, True)]
                    slopes = [torch.cat([g.flatten() for g in grads(out, leaves)]) for out in outs]
                    where = f"{length} tokens in training with {' and '.join(extra)}"
                    yield max(difference(*reversed(outs)), difference(*reversed(slopes))), where

    return worst(measured(), subject.exact)


def grads(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of the sum of squares of an output, zeros where it does not depend on a leaf."""
    found = gradients(out.square().sum(), leaves)
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]


@promise("eval calls change no later output")
def eval_keeps_no_state(subject: Subject) -> Measure:
    """The difference between a fresh layer and one that was called before in eval; how much its state_dict changed.

    Called with other tokens, batches and lengths, with masks, for its weights, and in inference mode.
    """

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            used = subject.build(causality)
            before = {name: value.clone() for name, value in used.state_dict().items()}
            lengths = (N, BLOCK, BLOCK + 3)
            ways: list[tuple[int, Mask | None]] = [
                *((length, None) for length in lengths),
                *((N, m) for m in subject.masks(causality=causality)),
            ]
            expected = [subject(subject.build(causality), subject.tokens(length=n), mask) for n, mask in ways]
            with torch.inference_mode():
                for length in reversed(lengths):
                    subject(used, subject.tokens(length=length, seed=1))
            with torch.no_grad():
                for length in (1, *lengths, *(2,) * CALLS):
                    subject(used, SHOUT * subject.tokens(batch=3, length=length, seed=2))
            for other in subject.masks(causality=causality):
                subject(used, subject.tokens(seed=3), other)
                if "weights" in subject.claims:
                    subject.attention_weights(used, subject.tokens(seed=3), other)
            for (length, mask), wanted in zip(ways, expected, strict=True):
                x = subject.tokens(length=length).requires_grad_()
                out = subject(used, x, mask)
                out.sum().backward()
                yield difference(out, wanted), f"{length} tokens after other calls ({said(causality, mask)})"
            for name, value in used.state_dict().items():
                yield float(not torch.equal(value, before[name])), f"calls in eval change {name} of its state_dict"

    return worst(measured(), 0)


@promise("eval does not depend on the global seed")
def eval_ignores_the_seed(subject: Subject) -> Measure:
    """The difference between outputs, and weights, in eval under other seeds of torch, NumPy and Python."""
    options = {"dropout": subject.dropout} if "dropout" in subject.claims and subject.can_choose("dropout") else {}
    states = np.random.get_state(), random.getstate()

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality, **options)
            for length in (N, BLOCK):
                x = subject.tokens(length=length)
                for mask in (None, *subject.masks(length=length, causality=causality)[: None if length == N else 1]):
                    found = []
                    for seed in SEEDS:
                        torch.manual_seed(seed)
                        np.random.seed(seed)
                        random.seed(seed)
                        found.append(subject(layer, x, mask))
                        if "weights" in subject.claims and length == N:
                            found.append(subject.attention_weights(layer, x, mask))
                    half = len(found) // 2
                    where = f"{length} tokens in eval under another seed ({said(causality, mask)})"
                    yield max(map(difference, found[:half], found[half:])), where

    try:
        return worst(measured(), 0)
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
