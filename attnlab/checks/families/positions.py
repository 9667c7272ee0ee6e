"""Where a layer knows places, they are counted from its own tokens: from the first real one, wherever that stands."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attnlab.checks.layer import B, N, Subject
from attnlab.checks.probes import EXACT, difference, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import padding

SHIFTS = (1, 4, 131)
"""Tokens of padding: a few, and enough for what fast paths do with long rows."""


@promise("padding on the left shifts nothing", needs=("contract", "padding"))
def unshifted(subject: Subject) -> Measure:
    """The difference between a sequence by itself and the same behind padding, outputs and gradients."""
    subject.require_no_origin()

    def measured() -> Iterator[tuple[float, str]]:
        lengths = torch.full((B,), N, device=subject.device)
        for causality in subject.causal_choices:
            layer, x = subject.build(causality), subject.tokens().requires_grad_()
            alone = subject(layer, x)
            (slope,) = torch.autograd.grad(alone.square().sum(), x, retain_graph=True)
            for shift in SHIFTS:
                behind = torch.cat([subject.tokens(length=shift, seed=31), x], 1)
                mask = padding(lengths, side="left", max_length=shift + N)
                out = subject(layer, behind, mask)[:, shift:]
                (found,) = torch.autograd.grad(out.square().sum(), x)
                where = f"{N} tokens behind {shift} of padding"
                yield max(difference(out, alone), difference(found, slope)), where

    return worst(measured(), EXACT)
