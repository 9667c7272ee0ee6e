"""Packed and padded sequences do not depend on each other."""

from __future__ import annotations

import torch

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import EXACT, difference, exact, gradient
from attnlab.checks.registry import Values, check
from attnlab.masks import from_cu_seqlens, padding

PACKED = ((3, 4), (67, 1, 83))
"""Lengths of the sequences in one row: short, and long enough for the backends of long sequences."""

PADDED = ((7, 4), (151, 90))

SHIFTS = (1, 4, 131)
"""Numbers of padding tokens: a few, and enough for the backends of long sequences."""


@check("packed_sequences_are_independent", needs=("segments",), limit=exact)
def packed(case: LayerUnderTest) -> Values:
    """The difference between sequences packed in one row under a segment mask and each sequence alone."""
    case.require_relative_pattern()
    for is_causal in case.causal_choices:
        layer = case.build(is_causal)
        for lengths in PACKED:
            x = case.tokens(length=sum(lengths))
            ends = torch.tensor([0, *lengths], device=x.device).cumsum(0)
            together = case(layer, x, from_cu_seqlens(ends)).split(list(lengths), 1)
            for out, sequence in zip(together, x.split(list(lengths), 1), strict=True):
                where = f"{sequence.shape[1]} of {lengths} tokens"
                yield difference(out, case(layer, sequence.contiguous())), where


@check("padding_with_masked_queries", needs=("contract", "padding"), limit=EXACT)
def masked_queries(case: LayerUnderTest) -> Values:
    """The change of real tokens, outputs and gradients, when padded queries are masked too; padded rows are zero."""
    for is_causal in case.causal_choices:
        layer = case.build(is_causal)
        for lengths in PADDED:
            x = case.tokens(length=lengths[0]).requires_grad_()
            counts = torch.tensor(lengths, device=x.device)
            position = torch.arange(lengths[0], device=x.device)
            for side in ("right", "left"):
                real = position < counts[:, None] if side == "right" else position >= lengths[0] - counts[:, None]
                masked, usual = (
                    case(layer, x, padding(counts, side=side, max_length=lengths[0], mask_queries=queries))
                    for queries in (True, False)
                )
                where = f"{lengths} tokens, padded on the {side}"
                yield masked[~real].abs().sum().item(), f"a padded row is not zero ({where})"
                slopes = [gradient(out[real].square().sum(), x) for out in (masked, usual)]
                yield max(difference(masked[real], usual[real]), difference(*slopes)), where


@check("left_padding_invariance", needs=("contract", "padding"), limit=EXACT)
def left_padding(case: LayerUnderTest) -> Values:
    """The difference between a sequence alone and the same sequence behind padding, in outputs and gradients."""
    case.require_relative_pattern()
    lengths = torch.full((B,), N, device=case.device)
    for is_causal in case.causal_choices:
        layer, x = case.build(is_causal), case.tokens().requires_grad_()
        alone = case(layer, x)
        slope = gradient(alone.square().sum(), x)
        for shift in SHIFTS:
            padded = torch.cat([case.tokens(length=shift, seed=31), x], 1)
            out = case(layer, padded, padding(lengths, side="left", max_length=shift + N))[:, shift:]
            changed = max(difference(out, alone), difference(gradient(out.square().sum(), x), slope))
            yield changed, f"{N} tokens behind {shift} of padding"
