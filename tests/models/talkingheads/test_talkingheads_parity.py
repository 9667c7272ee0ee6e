"""Talking-heads attention against x-transformers 2.31, with mixtures before and after the softmax.

x-transformers adds the mixture before the softmax to the scores, so its first matrix is P_l minus the identity.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from comparison import TOLERANCE, assert_same, padding_lengths, random

from attnlab import masks
from attnlab.models.talkingheads import TalkingHeadsAttention

ORACLES = {"test_": ("x-transformers", "Attention, talking heads")}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d", "D"), [(2, 11, 3, 5, 15), (1, 17, 7, 2, 14), (3, 7, 2, 8, 16)])
def test_x_transformers(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    pytest.importorskip("x_transformers")
    from peers.adapters.base import join_projections
    from peers.adapters.x_transformers import Attention

    torch.manual_seed(0)
    softmax = partial(torch.softmax, dim=-1)  # their default softmax is always float32
    options = {"pre_talking_heads": True, "post_talking_heads": True, "custom_attn_fn": softmax}
    theirs = Attention(D, H, causal=causal, **options).inner.to(dtype)
    before, after = theirs.attend.pre_softmax_talking_heads, theirs.attend.post_softmax_talking_heads
    projections = [theirs.to_q, theirs.to_k, theirs.to_v]
    layer = TalkingHeadsAttention(D, H, causal=causal, bias=False).to(dtype)
    join_projections(projections, layer.qkv)
    with torch.no_grad():
        for mixture in (before, after):
            torch.nn.init.normal_(mixture.weight)
        layer.output.weight.copy_(theirs.to_out.weight)
        layer.scores.copy_(before.weight[:, :, 0, 0] + torch.eye(H))
        layer.mixture.copy_(after.weight[:, :, 0, 0])

    a, b = (random(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    lengths, real = padding_lengths(B, N, padded)
    expected = theirs(a, mask=real if padded else None)
    expected = (expected[0] if isinstance(expected, tuple) else expected)[real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    W_Q, W_K, W_V = (part.weight for part in projections)
    leaves = [a, W_Q, W_K, W_V, theirs.to_out.weight, before.weight, after.weight]
    direction = random(*ours.shape, dtype=dtype) / N
    x_grad, *qkv, output, scores, mixture = torch.autograd.grad((expected * direction).sum(), leaves)
    true = [x_grad, torch.cat(qkv), output, scores[:, :, 0, 0], mixture[:, :, 0, 0]]
    parameters = [layer.qkv.weight, layer.output.weight, layer.scores, layer.mixture]
    found = torch.autograd.grad((ours * direction).sum(), [b, *parameters])
    for actual, wanted in zip((ours, *found), (expected, *true), strict=True):
        assert_same(actual, wanted, TOLERANCE[dtype])
