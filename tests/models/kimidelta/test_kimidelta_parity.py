"""Kimi Delta Attention against the naive recurrence of flash-linear-attention, and against the layer of transformers.

Both compute in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, PADDED, assert_parity, assert_same_gradients, copy_parameters, naive_of_fla, random
from torch import Tensor

from attnlab.models.kimidelta import KimiDeltaAttention
from attnlab.nn.recurrent import EPS

ORACLES = {
    "test_fla": ("fla-core", "naive recurrent KDA"),
    "test_transformers": ("transformers", "KimiLinearDeltaAttention"),
}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 131, 2, 7), (3, 7, 5, 3)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("kda", "naive_recurrent_kda")
    torch.manual_seed(0)
    layer = KimiDeltaAttention(H * d, H, short_conv=0, output_norm=False, output_gate="none").to(dtype)
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, d)) for part in F.silu(layer.qkv(x)).chunk(3, -1))
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    g = -layer.decay.log_rate.exp()[:, None] * F.softplus(layer.step(x) + layer.decay.offset).unflatten(-1, (H, d))
    theirs, _ = naive(q, k, v, g, layer.strength(x).sigmoid())
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs.flatten(2).to(dtype)), sources), 2e-5)


@PADDED
@DTYPES
def test_transformers(dtype: torch.dtype, padded: bool) -> None:
    transformers = pytest.importorskip("transformers")
    source = importlib.import_module("transformers.models.kimi_linear.modeling_kimi_linear")
    H, d = 2, 8  # wider heads are rarely so short that the norm amplifies their rounding
    config = transformers.KimiLinearConfig(hidden_size=H * d, linear_num_heads=H, linear_head_dim=d, rms_norm_eps=EPS)
    torch.manual_seed(0)
    theirs, layer = source.KimiLinearDeltaAttention(config, 0).to(dtype), KimiDeltaAttention(H * d, H).to(dtype)
    with torch.no_grad():  # they are not initialized
        theirs.forget_gate.A_log.uniform_(0, 2)
        theirs.forget_gate.dt_bias.normal_()

    def pairs(read: Callable[[Tensor], Any]) -> list[tuple[Tensor, Tensor]]:
        gate = theirs.forget_gate
        return [
            (read(layer.qkv.weight), torch.cat([read(getattr(theirs, f"{part}_proj").weight) for part in "qkv"])),
            (read(layer.conv.weight), read(theirs.conv1d.weight).squeeze(1).flip(-1)),  # type: ignore[union-attr]
            (read(layer.step.down.weight), read(gate.f_a_proj.weight)),
            (read(layer.step.up.weight), read(gate.f_b_proj.weight)),
            (read(layer.decay.offset), read(gate.dt_bias)),
            (read(layer.decay.log_rate), read(gate.A_log).flatten()),
            (read(layer.strength.weight), read(theirs.b_proj.weight)),
            (read(layer.gate.down.weight), read(theirs.g_a_proj.weight)),  # type: ignore[union-attr]
            (read(layer.gate.up.weight), read(theirs.g_b_proj.weight)),  # type: ignore[union-attr]
            (read(layer.norm.weight), read(theirs.o_norm.weight)),  # type: ignore[union-attr]
            (read(layer.output.weight), read(theirs.o_proj.weight)),
        ]

    copy_parameters(pairs)
    assert_parity(layer, lambda x, allowed: (theirs(x), None), pairs, (3, 19), padded, 1e-5)
