"""Gated DeltaNet against the naive recurrence of flash-linear-attention, and Qwen3-Next's layer in transformers 5.24.

Both compute the recurrence in float32.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_parity, assert_same_gradients, copy_parameters, naive_of_fla, random
from torch import Tensor

from attnlab.models.gateddeltanet import GatedDeltaNet
from attnlab.ops.scan.functions import l2_norm

ORACLES = {
    "test_fla": ("fla-core", "naive recurrent gated delta rule"),
    "test_transformers": ("transformers", "Qwen3NextGatedDeltaNet"),
}
SIZES = pytest.mark.parametrize(("B", "N", "H", "d", "w"), [(2, 11, 3, 5, 7), (1, 131, 2, 7, 3)])


@DTYPES
@SIZES
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int) -> None:
    naive = naive_of_fla("gated_delta_rule", "naive_recurrent_gated_delta_rule")
    torch.manual_seed(0)
    layer = GatedDeltaNet(13, H, key_dim=d, value_dim=w, short_conv=0, output_norm=False, output_gate="none").to(dtype)
    x = random(B, N, 13, dtype=dtype).requires_grad_()
    q, k, v = (F.silu(part).unflatten(-1, (H, -1)) for part in layer.qkv(x).split([H * d, H * d, H * w], -1))
    g = -layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)
    theirs, _ = naive(l2_norm(q), l2_norm(k), v, layer.strength(x).sigmoid(), g)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs.flatten(2).to(dtype)), sources), 1e-5)


def qwen3_next(H: int, d: int, w: int, dtype: torch.dtype) -> Any:
    """Their layer; with one value head per key head."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    heads = {"linear_num_key_heads": H, "linear_num_value_heads": H, "linear_key_head_dim": d}
    config = transformers.Qwen3NextConfig(
        hidden_size=13, linear_value_head_dim=w, rms_norm_eps=2**-17, num_hidden_layers=1, **heads
    )
    torch.manual_seed(0)
    layer = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    torch.nn.init.normal_(layer.norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(layer.dt_bias, -2.0)  # decays between 0.2 and 1, not all close to 0
    return layer.to(dtype)


@DTYPES
@SIZES
@pytest.mark.parametrize("padded", [False, True])
def test_transformers(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int, padded: bool) -> None:
    theirs = qwen3_next(H, d, w, dtype)
    ours = GatedDeltaNet(13, H, key_dim=d, value_dim=w).to(dtype)

    def pairs(read: Any) -> list[tuple[Tensor, Tensor]]:
        # Theirs are grouped by head: q, k, v and the gate; then the strength and the decay.
        q, k, v, z = read(theirs.in_proj_qkvz.weight).unflatten(0, (H, -1)).split([d, d, w, w], 1)
        strength, decay = read(theirs.in_proj_ba.weight).unflatten(0, (H, 2)).unbind(1)
        return [
            (read(ours.qkv.weight), torch.cat([part.flatten(0, 1) for part in (q, k, v)])),
            (read(ours.conv.weight), read(theirs.conv1d.weight).squeeze(1).flip(1)),  # type: ignore[union-attr]
            (read(ours.gate.weight), z.flatten(0, 1)),  # type: ignore[union-attr]
            (read(ours.strength.weight), strength),
            (read(ours.step.weight), decay),
            (read(ours.decay.offset), read(theirs.dt_bias)),
            (read(ours.decay.log_rate), read(theirs.A_log)),
            (read(ours.norm.weight), read(theirs.norm.weight)),  # type: ignore[union-attr]
            (read(ours.output.weight), read(theirs.out_proj.weight)),
        ]

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        real = allowed[:, 0, -1] if padded else None  # the last row attends to every real token
        return theirs(x, attention_mask=None if real is None else real.to(x.dtype)), None

    copy_parameters(pairs)
    assert_parity(ours, call, pairs, (B, N), padded, 2e-5)
