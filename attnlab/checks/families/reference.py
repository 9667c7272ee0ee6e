"""Outputs and gradients match those of the reference implementation, and outputs those of permuted tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from attnlab.checks.layer_under_test import B, LayerUnderTest, M, N, as_matrix
from attnlab.checks.probes import describe, difference, exact, located
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, from_tensor

BLOCK = 64
"""The block size of several backends; longer sequences are compared with this one by other checks."""


@check("permutation_equivariance", needs=("equivariant",), limit=exact)
def permutation_equivariance(case: LayerUnderTest) -> Values:
    """The difference between the output of permuted tokens, with the mask permuted, and the permuted output."""
    layer, x = case.build(False), case.tokens()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1)).to(x.device)
    yield difference(case(layer, x[:, order]), case(layer, x)[:, order]), "no mask"
    for mask in case.masks() if "arbitrary_mask" in case.capabilities else []:
        matrix = as_matrix(mask, x, x)
        permuted = case(layer, x[:, order], matrix[:, order][:, :, order])
        yield difference(permuted, case(layer, x, matrix)[:, order]), f"mask={mask}"


@check("matches_reference_outputs", needs=("reference",), limit=exact)
def outputs(case: LayerUnderTest) -> Values:
    """The difference from the outputs of the reference, for all arguments and their combinations, in float64."""
    for call in (*_calls(case), ReferenceCall(case.causal_choices[-1], None, length=BLOCK, batch=1)):
        actual, expected, _ = _run(case, call)
        yield difference(actual, expected), str(call)


@check("matches_reference_gradients", needs=("reference",), limit=exact)
def gradients(case: LayerUnderTest) -> Values:
    """The difference from the gradients of the reference, in every input and parameter, in float64."""
    for call in _calls(case):
        *outs, inputs = _run(case, call)
        cotangent = case.random(*outs[1].shape, seed=3)
        slopes = [
            torch.autograd.grad(out, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
            for out in outs
        ]
        for name, ours, reference in zip(inputs, *slopes, strict=True):
            yield difference(ours, reference), f"the gradient of {name} ({call})"


@dataclass(frozen=True)
class ReferenceCall:
    """The arguments of one call; ``context`` is its number of tokens, or None for self-attention."""

    is_causal: bool
    mask: Mask | None
    bias: bool = False
    context: int | None = None
    length: int = N
    batch: int = B

    def __str__(self) -> str:
        extra = [*(["a bias"] if self.bias else []), *([f"{self.context} tokens of context"] if self.context else [])]
        return " and ".join([describe(self.is_causal, self.mask), *extra])


def _calls(case: LayerUnderTest) -> Iterator[ReferenceCall]:
    per_head = {keys: _per_head_masks(case, keys or N) for keys in (None, N, M, 2 * M + 1)}
    for is_causal in case.causal_choices:
        for mask in (None, *case.masks(is_causal=is_causal), *per_head[None]):
            yield ReferenceCall(is_causal, mask)
        biases = [False, True] if "attn_bias" in case.capabilities else [False]
        # A causal layer rejects a context of another length.
        contexts = [N] if is_causal else [M, 2 * M + 1]
        lengths = [None, *contexts] if "context" in case.capabilities else [None]
        for bias, length in list(product(biases, lengths))[1:]:
            for mask in (None, *per_head[length]):
                yield ReferenceCall(is_causal, mask, bias, length)


def _per_head_masks(case: LayerUnderTest, keys: int) -> list[Mask]:
    """A mask that differs by item and head; one row is fully masked in one head, another in all heads."""
    if not (case.is_ours and "arbitrary_mask" in case.capabilities):
        return []
    rule = case.random(B, case.num_heads, N, keys, seed=5) > 0
    rule[0, :, 2] = False
    rule[1, 0, 3] = False
    return [from_tensor(rule)]


def _run(case: LayerUnderTest, call: ReferenceCall) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The output of the layer, that of the reference, and every input and parameter."""
    layer = case.build(call.is_causal)
    x = case.tokens(call.batch, call.length).requires_grad_()
    extra = {}
    if call.context is not None:
        extra["context"] = case.tokens(call.batch, call.context, seed=1).requires_grad_()
    shape = (call.batch, case.num_heads, call.length, extra.get("context", x).shape[1])
    if call.bias:
        extra["attn_bias"] = case.random(*shape, seed=2).requires_grad_()
    rule = None if call.mask is None else call.mask.materialize(*shape[2:], device=x.device)
    if call.is_causal:
        past = causal().materialize(*shape[2:], device=x.device)
        rule = past if rule is None else past & rule
    mask = {} if rule is None else {"mask": rule.expand(shape)}
    assert case.reference is not None
    with located(str(call)):
        actual = case(layer, x, call.mask, **extra)
    trained = {name: parameter for name, parameter in layer.named_parameters() if parameter.requires_grad}
    with x.device:  # a reference names no device for its tensors
        expected = case.reference(layer, x, **mask, **extra)
    return actual, expected, {"x": x, **extra, **trained}
