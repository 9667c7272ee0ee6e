"""Sequences packed in one row, or padded in a batch, know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attnlab.checks.layer import Subject
from attnlab.checks.probes import EXACT, difference, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import from_cu_seqlens, padding

PACKED = ((3, 4), (67, 1, 83))
"""Lengths of sequences in one row: short, and long enough for what fast paths do with long ones."""

PADDED = ((7, 4), (151, 90))


@promise("packed sequences are each alone", needs=("segments",))
def packed(subject: Subject) -> Measure:
    """The difference between sequences in one row under a mask of documents, and each by itself."""
    subject.require_no_origin()

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality)
            for lengths in PACKED:
                x = subject.tokens(length=sum(lengths))
                ends = torch.tensor([0, *lengths], device=x.device).cumsum(0)
                together = subject(layer, x, from_cu_seqlens(ends)).split(list(lengths), 1)
                for found, own in zip(together, x.split(list(lengths), 1), strict=True):
                    yield difference(found, subject(layer, own.contiguous())), f"{own.shape[1]} of {lengths} tokens"

    return worst(measured(), subject.exact)


@promise("packed padding changes nothing", needs=("contract", "padding"))
def left_out(subject: Subject) -> Measure:
    """``padding(mask_queries=True)`` leaves outputs and gradients of real tokens unchanged; a padded row is zero."""

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality)
            for lengths in PADDED:
                x = subject.tokens(length=lengths[0]).requires_grad_()
                for side in ("right", "left"):
                    given = {"side": side, "max_length": lengths[0]}
                    counts = torch.tensor(lengths, device=x.device)
                    place = torch.arange(lengths[0], device=x.device)
                    real = (place < counts[:, None]) if side == "right" else (place >= lengths[0] - counts[:, None])
                    alone = subject(layer, x, padding(counts, **given, mask_queries=True))  # type: ignore[arg-type]
                    usual = subject(layer, x, padding(counts, **given))  # type: ignore[arg-type]
                    where = f"{lengths} tokens, padded on the {side}"
                    yield alone[~real].abs().sum().item(), f"a padded row is not zero ({where})"
                    slopes = [torch.autograd.grad(out[real].square().sum(), x)[0] for out in (alone, usual)]
                    yield max(difference(alone[real], usual[real]), difference(*slopes)), where

    return worst(measured(), EXACT)
