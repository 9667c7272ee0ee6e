"""Where there are no positions, order means nothing."""

from __future__ import annotations

import torch

from attnlab.checks.layer import N, Subject, as_matrix
from attnlab.checks.probes import difference, worst
from attnlab.checks.registry import Measure, promise


@promise("permuted in, permuted out", needs=("equivariant",))
def permuted(subject: Subject) -> Measure:
    """The difference between the output for permuted tokens and the permuted output, masks permuted alike."""
    layer, x = subject.layer(causal=False) if "causal" in subject.claims else subject.layer(), subject.tokens()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1)).to(x.device)
    measured = [(difference(subject(layer, x[:, order]), subject(layer, x)[:, order]), "asked plainly")]
    if "arbitrary_mask" in subject.claims:
        for mask in subject.masks():
            matrix = as_matrix(mask, x, x)
            permuted = subject(layer, x[:, order], matrix[:, order][:, :, order])
            measured.append((difference(permuted, subject(layer, x, matrix)[:, order]), f"mask={mask}"))
    return worst(measured, subject.exact)
