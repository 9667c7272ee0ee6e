"""Without positional information a layer is equivariant to permutations of its tokens."""

from __future__ import annotations

import torch

from attnlab.checks.layer_under_test import LayerUnderTest, N, as_matrix
from attnlab.checks.probes import difference, largest
from attnlab.checks.registry import Measurement, check


@check("permutation_equivariance", needs=("equivariant",))
def permutation_equivariance(case: LayerUnderTest) -> Measurement:
    """The difference between the output of permuted tokens, with the mask permuted, and the permuted output."""
    layer, x = case.layer(causal=False) if "causal" in case.capabilities else case.layer(), case.tokens()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1)).to(x.device)
    measured = [(difference(case(layer, x[:, order]), case(layer, x)[:, order]), "no mask")]
    if "arbitrary_mask" in case.capabilities:
        for mask in case.masks():
            matrix = as_matrix(mask, x, x)
            permuted = case(layer, x[:, order], matrix[:, order][:, :, order])
            measured.append((difference(permuted, case(layer, x, matrix)[:, order]), f"mask={mask}"))
    return largest(measured, case.exact)
