"""The same question, the same answer: dropout only in training, seeds that hold, copies that are copies."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy

import torch

from attnlab.checks.claims import NotClaimed
from attnlab.checks.probes import EXACT, difference
from attnlab.checks.registry import Measure, promise
from attnlab.checks.subject import SEED, Subject

SAMPLES = 4096


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
    """How many standard errors the mean of 4096 outputs in training is from the output in eval."""
    if not getattr(subject.layer(), "linear_in_weights", True):
        raise NotClaimed("its output is not linear in its weights")
    layer, x = subject.layer(dropout=subject.dropout), subject.tokens(batch=1)
    expected = subject(layer, x)
    torch.manual_seed(SEED)
    with torch.no_grad():
        samples = subject(layer.train(), x.repeat(SAMPLES, 1, 1))
    spread = samples.std(0)
    if not bool((spread > EXACT).any()):
        return Measure(float("inf"), 5, "nothing is ever dropped in training")
    errors = (samples.mean(0) - expected[0]).abs() / (spread / SAMPLES**0.5 + EXACT)
    return Measure(errors.max().item(), 5, f"the mean in training, with dropout={subject.dropout}")


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
