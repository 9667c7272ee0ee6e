"""Outputs do not depend on forbidden tokens: future, masked and padding tokens, and other items of the batch.

Each dependence is measured by the gradient and by replacing the forbidden tokens with large noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.layer_under_test import B, LayerUnderTest, M, N, as_matrix
from attnlab.checks.probes import (
    NOISE_SCALE,
    batched_leaks,
    describe,
    difference,
    differences,
    every_configuration,
    exact,
    gradient,
    gradients,
    input_sensitivity,
    leaks,
    located,
    seeded,
)
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, from_tensor, padding, sliding_window

TOLERANCE = 1e-9
"""An exact zero for most mechanisms; rounding errors for those that mix tokens by a transform."""

LENGTHS = (N, 64, 67, 128, 263)
"""Multiples of the block sizes of the backends (64, 128), and lengths above them (64, 256) that are none."""

BLOCK = 64

BATCH = 11
"""Larger than the batches for which a backend may take a special case."""

ITEMS = (0, 3, 8, BATCH - 1)
"""The items that are compared with the same items alone."""


def _tolerance(case: LayerUnderTest) -> float:
    return max(TOLERANCE, case.exact)


@check("tokens_interact")
@every_configuration
def tokens_interact(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """1 if no output depends on another token in some configuration: such a layer would pass the checks below."""
    run = partial(case, case.build(is_causal), mask=mask)
    return float(not any(bool(row.any()) for row in input_sensitivity(run, case.tokens())))


@check("no_future_leakage", needs=("causal",), limit=TOLERANCE)
def no_future_leakage(case: LayerUnderTest) -> Values:
    """The dependence of causal outputs on later tokens, at several lengths, in eval mode and in training."""
    x, layer = case.tokens(), case.layer(causal=True)
    for value, where in leaks(partial(case, layer), x, ~case.allowed(True, None, x), range(N)):
        yield value, f"{where}, of {N} tokens"
    for length in LENGTHS:
        x = case.tokens(1, length)
        forbidden = ~case.allowed(True, None, x)
        for mode, layer in case.modes(True):
            if mode == "eval" or length in (N, 64, 128):
                value, where = batched_leaks(seeded(partial(case, layer)), x, forbidden, _rows(length))
                yield value, f"{where}, of {length} tokens in {mode}"


@check("causal_prefix_invariance", needs=("causal",), limit=_tolerance)
def causal_prefix(case: LayerUnderTest) -> Values:
    """The difference between the first outputs of a causal sequence and the outputs of its first tokens alone."""
    layer = case.layer(causal=True)
    for length in (N, 67, 131, 521):
        x = case.tokens(B if length == N else 1, length)
        full = case(layer, x)
        for first in (length // 2, length // BLOCK * BLOCK, length - 1):
            alone = case(layer, x[:, :first].contiguous())
            yield difference(alone, full[:, :first]), f"the first {first} of {length} tokens"


@check("no_future_leakage_with_mask", needs=("causal", "padding"), limit=TOLERANCE)
def no_future_leakage_with_mask(case: LayerUnderTest) -> Values:
    """The dependence of causal outputs on later or masked tokens, for every kind of mask."""
    yield from _leakage(case, case.masks, is_causal=True)


@check("no_masked_key_leakage", needs=("arbitrary_mask",), limit=TOLERANCE)
def no_masked_key_leakage(case: LayerUnderTest) -> Values:
    """The dependence of outputs on tokens that are masked for them."""
    yield from _leakage(case, case.masks)


@check("no_padding_leakage", needs=("padding",), limit=TOLERANCE)
def no_padding_leakage(case: LayerUnderTest) -> Values:
    """The dependence of the outputs of real tokens on padding, on the right or on the left."""
    yield from _leakage(case, case.paddings)


def _leakage(case: LayerUnderTest, masks: Callable[..., list[Mask]], *, is_causal: bool = False) -> Values:
    """The dependence on forbidden tokens under these masks, in eval mode and in training."""
    options: dict[str, Any] = {"causal": True} if is_causal else {}
    layer, x = case.layer(**options), case.tokens()
    trained = [case.layer(train=True, **options)]
    if dropout := case.dropout_options:
        trained.append(case.layer(train=True, **options, **dropout))
    for mask in masks(is_causal=is_causal):
        forbidden = ~case.allowed(is_causal, mask, x)
        with located(where := describe(is_causal, mask)):
            for value, detail in leaks(partial(case, layer, mask=mask), x, forbidden, range(N)):
                yield value, f"{detail} ({where})"
    for length, layers in ((N, trained), (BLOCK, [layer, trained[-1]])):
        row, counts = case.tokens(1, length), torch.tensor([length - 3], device=x.device)
        for mask, used in product(masks(1, length, is_causal=is_causal, counts=counts), layers):
            forbidden = ~case.allowed(is_causal, mask, row)
            with located(where := describe(is_causal, mask)):
                value, detail = batched_leaks(seeded(partial(case, used, mask=mask)), row, forbidden, _rows(length))
            yield value, f"{detail}, of {length} tokens in {'training' if used.training else 'eval'} ({where})"


def _rows(length: int) -> list[int]:
    """All outputs of a short sequence; of a long one those at the borders of blocks."""
    if length <= N:
        return list(range(length))
    rows = {0, 31, 32, 62} if length == BLOCK else {63, 64, 127, 255, length - 2}
    return sorted(rows & set(range(length)))


@check("padding_invariance", needs=("padding",), limit=_tolerance)
def padding_invariance(case: LayerUnderTest) -> Values:
    """The difference between a sequence padded on the right and the same sequence without padding."""
    sizes = ((1, N), (4, N), (N - 1, N), (BLOCK, 67), (61, BLOCK), (67, 128), (256, 263))
    for is_causal, (length, total) in product(case.causal_choices, sizes):
        layer, x = case.build(is_causal), case.tokens(length=total).requires_grad_()
        lengths = torch.tensor([total, length], device=x.device)
        outs = case(layer, x, padding(lengths))[1:, :length], case(layer, x[1:, :length])
        slopes = [gradient(out.square().sum(), x) for out in outs]
        where = f"{length} tokens padded to {total} ({describe(is_causal, None)})"
        yield max(difference(*outs), difference(*slopes)), where


@check("nan_in_padding_is_ignored", needs=("contract", "padding"), limit=exact)
def nan_in_padding(case: LayerUnderTest) -> Values:
    """The change that NaN and infinity in padding make to the outputs of real tokens and to the gradients."""
    lengths = torch.tensor([N, N - 3], device=case.device)
    position = torch.arange(N, device=case.device)
    for side, fill in product(("right", "left"), (torch.nan, torch.inf)):
        real = position < lengths[:, None] if side == "right" else position >= N - lengths[:, None]
        zeros, filled = (case.tokens().masked_fill(~real[..., None], value) for value in (0.0, fill))
        for is_causal, queries, train in product(case.causal_choices, (False, True), (False, True)):
            mask: Mask = padding(lengths, side=side, max_length=N, mask_queries=queries)
            combined = [mask & sliding_window(3), causal() & mask] if "arbitrary_mask" in case.capabilities else []
            for joined in (mask, *combined):
                layer = case.build(is_causal, train=train)
                results = [_outputs_and_gradients(case, layer, x, joined, real) for x in (zeros, filled)]
                yield differences(*results), f"{fill} in padding on the {side} ({describe(is_causal, joined)})"
        if "context" in case.capabilities:
            layer, x = case.build(False), case.tokens(length=M)
            mask = padding(lengths, side=side, max_length=N)
            every = torch.ones(len(x), M, dtype=torch.bool, device=x.device)
            results = [_outputs_and_gradients(case, layer, x, mask, every, context=each) for each in (zeros, filled)]
            yield differences(*results), f"{fill} in the padding of a context"


def _outputs_and_gradients(
    case: LayerUnderTest, layer: nn.Module, x: Tensor, mask: Mask, real: Tensor, **extra: Tensor
) -> list[Tensor]:
    """The outputs of real tokens, and the gradients of their sum of squares in all tokens and parameters."""
    leaves = [x.detach().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
    out = case(layer, leaves[0], mask, **extra)[real]
    return [out.detach(), *gradients(out.square().sum(), leaves)]


@check("no_batch_leakage", limit=TOLERANCE)
def no_batch_leakage(case: LayerUnderTest) -> Values:
    """The dependence of one item of a batch on another, in training and in eval mode."""
    x = case.tokens()
    noisy = torch.cat([x[:1], NOISE_SCALE * case.random(1, N, case.embed_dim, seed=1)])
    for train, mask in product((False, True), (None, *case.masks())):
        run = seeded(partial(case, case.layer(train=train), mask=mask))
        tokens = x.clone().requires_grad_()
        slope = gradient(run(tokens)[0].square().sum(), tokens)
        with torch.no_grad():
            value = max(slope[1].abs().max().item(), difference(run(noisy)[0], run(x)[0]))
        yield value, f"one item depends on another in {'training' if train else 'eval'}"


@check("batch_invariance", limit=_tolerance)
def batch_invariance(case: LayerUnderTest) -> Values:
    """The difference between an item of a batch of 11, with one mask per item, and the same item alone."""
    for length in (N, BLOCK):
        x = case.tokens(BATCH, length)
        counts = 1 + 5 * torch.arange(BATCH, device=x.device) % length
        masks = case.masks if length == N else case.paddings
        for is_causal, train in product(case.causal_choices, (False, True) if length == N else (False,)):
            layer = case.build(is_causal, train=train)
            of_items = [masks(1, length, is_causal=is_causal, counts=counts[[i]]) for i in ITEMS]
            for number, mask in enumerate((None, *masks(BATCH, length, is_causal=is_causal, counts=counts))):
                alone = [None if mask is None else item[number - 1] for item in of_items]
                with located(where := describe(is_causal, mask)):
                    value = _batch_error(case, layer, x, mask, alone)
                yield value, f"an item of {BATCH} of {length} tokens ({where})"
            for extra in case.extras(is_causal, BATCH, length)[1:]:
                value = _batch_error(case, layer, x, None, [None] * len(ITEMS), **extra)
                yield value, f"an item of {BATCH} with {' and '.join(extra)}"


def _batch_error(
    case: LayerUnderTest, layer: nn.Module, x: Tensor, mask: Mask | None, alone: list[Mask | None], **extra: Tensor
) -> float:
    """The largest difference between some items of a batch and the same items alone, in outputs and gradients.

    ``alone`` holds the mask of each item; a layer that takes every mask gets its part of the matrix.
    """
    x = x.detach().requires_grad_()
    matrix = None if mask is None or "arbitrary_mask" not in case.capabilities else as_matrix(mask, x, x)
    out = case(layer, x, mask, **extra)
    slope = gradient(out.square().sum(), x)
    actual, expected = [], []
    for i, item_mask in zip(ITEMS, alone, strict=True):
        item = x[i : i + 1].detach().requires_grad_()
        item_extra = {name: value[i : i + 1] for name, value in extra.items()}
        rule = item_mask if matrix is None else from_tensor(matrix[i : i + 1].contiguous())
        item_out = case(layer, item, rule, **item_extra)
        actual += [out[i : i + 1], slope[i : i + 1]]
        expected += [item_out, gradient(item_out.square().sum(), item)]
    return differences(actual, expected)
