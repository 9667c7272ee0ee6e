"""Talking-heads attention against x-transformers 2.31, with mixtures before and after the softmax.

x-transformers adds the mixture before the softmax to the scores, so its first matrix is P_l minus the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from comparison import CAUSAL, DTYPES, PADDED, TOLERANCE, assert_parity, copy_parameters
from torch import Tensor

from attnlab.models.talkingheads import TalkingHeadsAttention

ORACLES = {"test_": ("x-transformers", "Attention, talking heads")}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(("B", "N", "H", "d", "D"), [(2, 11, 3, 5, 15), (1, 17, 7, 2, 14), (3, 7, 2, 8, 16)])
def test_x_transformers(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    pytest.importorskip("x_transformers")
    from peers.adapters.x_transformers import Attention

    torch.manual_seed(0)
    softmax = partial(torch.softmax, dim=-1)  # their default softmax is always float32
    options = {"pre_talking_heads": True, "post_talking_heads": True, "custom_attn_fn": softmax}
    theirs = Attention(D, H, causal=causal, **options).inner.to(dtype)
    before, after = theirs.attend.pre_softmax_talking_heads, theirs.attend.post_softmax_talking_heads
    for mixture in (before, after):
        torch.nn.init.normal_(mixture.weight)
    layer = TalkingHeadsAttention(D, H, causal=causal, bias=False).to(dtype)

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        qkv = torch.cat([read(part.weight) for part in (theirs.to_q, theirs.to_k, theirs.to_v)])
        scores, mixture = (read(part.weight)[:, :, 0, 0] for part in (before, after))
        if read(before.weight) is before.weight:  # values, not gradients
            scores = scores + torch.eye(H)
        ours = layer.qkv.weight, layer.output.weight, layer.scores, layer.mixture
        return list(zip(map(read, ours), (qkv, read(theirs.to_out.weight), scores, mixture), strict=True))

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        out = theirs(x, mask=allowed[:, 0, -1] if padded else None)
        return out[0] if isinstance(out, tuple) else out, None

    copy_parameters(pairs)
    assert_parity(layer, call, pairs, (B, N), padded, TOLERANCE[dtype])
