"""The fast path is the readable one: the output and its gradients are those of the formula in plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.checks.capabilities import Broken
from attnlab.checks.layer import B, M, N, Subject, first_line
from attnlab.checks.probes import difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, from_tensor

BLOCK = 64
"""A block of the fast paths that go block by block; other checks compare longer sequences with this one."""


@promise("fast path = reference, outputs", needs=("reference",))
def outputs(subject: Subject) -> Measure:
    """The difference from the reference, for all that the layer takes and their combinations, in float64."""
    questions = [*_questions(subject), Question(subject.causal_choices[-1], None, length=BLOCK, batch=1)]

    def measured() -> Iterator[tuple[float, str]]:
        for question in questions:
            fast, plain, _ = _answers(subject, question)
            yield difference(fast, plain), str(question)

    return worst(measured(), subject.exact)


@promise("fast path = reference, gradients", needs=("reference",))
def gradients(subject: Subject) -> Measure:
    """The difference from the gradients of the reference, for every input and parameter, in float64."""

    def measured() -> Iterator[tuple[float, str]]:
        for question in _questions(subject):
            fast, plain, inputs = _answers(subject, question)
            cotangent = subject.random(*plain.shape, seed=3)
            found, expected = (
                torch.autograd.grad(out, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
                for out in (fast, plain)
            )
            for name, ours, true in zip(inputs, found, expected, strict=True):
                yield difference(ours, true), f"the gradient of {name} ({question})"

    return worst(measured(), subject.exact)


@dataclass(frozen=True)
class Question:
    """What a layer is asked: with a bias or not, and looking at a context of so many tokens or at itself."""

    causality: bool
    mask: Mask | None
    bias: bool = False
    context: int | None = None
    length: int = N
    batch: int = B

    def __str__(self) -> str:
        more = [*(["a bias"] if self.bias else []), *([f"{self.context} tokens of context"] if self.context else [])]
        return " and ".join([said(self.causality, self.mask), *more])


def _questions(subject: Subject) -> Iterator[Question]:
    heads = {keys: _by_head(subject, keys or N) for keys in (None, N, M, 2 * M + 1)}
    for causality in subject.causal_choices:
        for mask in (None, *subject.masks(causality=causality), *heads[None]):
            yield Question(causality, mask)
        biases = [False, True] if "attn_bias" in subject.claims else [False]
        # A causal layer refuses a context of another length.
        contexts = [N] if causality else [M, 2 * M + 1]
        lengths = [None, *contexts] if "context" in subject.claims else [None]
        for bias in biases:
            for length in lengths:
                for mask in (None, *heads[length]):
                    if bias or length:
                        yield Question(causality, mask, bias, length)


def _by_head(subject: Subject, keys: int) -> list[Mask]:
    """A mask that differs by item and head, with a row that is empty in one head and one that is in all."""
    if not (subject.is_ours and "arbitrary_mask" in subject.claims):
        return []
    rule = subject.random(B, subject.num_heads, N, keys, seed=5) > 0
    rule[0, :, 2] = False
    rule[1, 0, 3] = False
    return [from_tensor(rule)]


def _answers(subject: Subject, question: Question) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the layer says, what the reference says, and all that they are functions of."""
    layer = subject.build(question.causality)
    x = subject.tokens(question.batch, question.length)
    x.requires_grad_()
    extra = {}
    if question.context is not None:
        extra["context"] = subject.tokens(question.batch, question.context, seed=1).requires_grad_()
    keys = extra.get("context", x)
    shape = (question.batch, subject.num_heads, question.length, keys.shape[1])
    if question.bias:
        extra["attn_bias"] = subject.random(*shape, seed=2).requires_grad_()

    rule = None if question.mask is None else question.mask.materialize(*shape[2:], device=x.device)
    if question.causality:
        future = causal().materialize(*shape[2:], device=x.device)
        rule = future if rule is None else future & rule
    truth = {} if rule is None else {"mask": rule.expand(shape)}
    assert subject.reference is not None
    try:
        fast = subject(layer, x, question.mask, **extra)
    except Exception as error:
        raise Broken(f"{first_line(error)} ({question})") from error
    trained = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    return fast, subject.reference(layer, x, **truth, **extra), {"x": x, **extra, **trained}
