"""Talking-heads attention against x-transformers 2.31, with talking before and after the softmax.

Theirs adds what is heard before the softmax to the head's own scores, so its first matrix is P_l less the identity.
It computes in float64 once it is given a softmax that does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import masks
from attnlab.models.talkingheads import TalkingHeadsAttention

ORACLES = {"test_": ("x-transformers", "Attention, talking heads")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d", "D"), [(2, 11, 3, 5, 15), (1, 17, 7, 2, 14), (3, 7, 2, 8, 16)])
def test_x_transformers(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    package: Any = pytest.importorskip("x_transformers")
    torch.manual_seed(0)
    theirs = package.Attention(
        D,
        dim_head=d,
        heads=H,
        causal=causal,
        pre_talking_heads=True,
        post_talking_heads=True,
        custom_attn_fn=partial(torch.softmax, dim=-1),  # its own one is of float32, always
    ).to(dtype)
    before, after = theirs.attend.pre_softmax_talking_heads, theirs.attend.post_softmax_talking_heads
    layer = TalkingHeadsAttention(D, H, causal=causal, bias=False).to(dtype)
    with torch.no_grad():
        for talk in (before, after):
            torch.nn.init.normal_(talk.weight)
        layer.qkv.weight.copy_(torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]))
        layer.output.weight.copy_(theirs.to_out.weight)
        layer.scores.copy_(before.weight[:, :, 0, 0] + torch.eye(H))
        layer.mixture.copy_(after.weight[:, :, 0, 0])

    x = torch.randn(B, N, D, dtype=torch.float64).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    lengths = torch.tensor([N - 2, N, N - 1][:B])
    real = torch.arange(N) < lengths[:, None] if padded else torch.ones(B, N, dtype=torch.bool)
    wanted = theirs(a, mask=real if padded else None)
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted)[real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]

    def same(found: Tensor, true: Tensor) -> None:
        torch.testing.assert_close(found, true, rtol=0, atol=TOLERANCE[dtype])

    same(ours, wanted)
    wave = torch.randn(ours.shape, dtype=torch.float64).to(dtype) / N
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, a.grad)
    same(layer.qkv.weight.grad, torch.cat([part.weight.grad for part in (theirs.to_q, theirs.to_k, theirs.to_v)]))
    same(layer.output.weight.grad, theirs.to_out.weight.grad)
    same(layer.scores.grad, before.weight.grad[:, :, 0, 0])
    same(layer.mixture.grad, after.weight.grad[:, :, 0, 0])
