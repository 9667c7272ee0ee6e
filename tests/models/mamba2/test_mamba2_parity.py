"""Mamba-2 against the layer in transformers 5.24, and the naive recurrence of flash-linear-attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_parity, assert_same, copy_parameters, naive_of_fla, random
from torch import Tensor

from attnlab.models.mamba2 import Mamba2

ORACLES = {"test_transformers": ("transformers", "Mamba2Mixer"), "test_fla": ("fla-core", "naive recurrent simple GLA")}


def mixer(D: int, H: int, s: int, dtype: torch.dtype) -> Any:
    """Their layer, with one group, because they normalize each group alone."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = transformers.Mamba2Config(
        hidden_size=D, num_heads=H, head_dim=2 * D // H, state_size=s, n_groups=1, expand=2, layer_norm_epsilon=2**-17
    )
    torch.manual_seed(0)
    layer = Mamba2Mixer(config, layer_idx=0)
    for parameter in (layer.norm.weight, layer.D, layer.dt_bias, layer.conv1d.bias):
        torch.nn.init.normal_(parameter, 0.5, 0.5)
    return layer.to(dtype)


@DTYPES
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("B", "N", "D", "H", "s"), [(2, 11, 15, 3, 7), (1, 131, 14, 2, 5)])
def test_transformers(dtype: torch.dtype, B: int, N: int, D: int, H: int, s: int, padded: bool) -> None:
    theirs = mixer(D, H, s, dtype)
    ours = Mamba2(D, H, state_size=s).to(dtype)

    def reordered(rows: Tensor) -> Tensor:
        """Their x, B, C as our C, B, x."""
        X, keys, C = rows.split([2 * D, s, s])
        return torch.cat([C, keys, X])

    def pairs(read: Any) -> list[tuple[Tensor, Tensor]]:
        z, xBC, dt = read(theirs.in_proj.weight).split([2 * D, 2 * D + 2 * s, H])
        return [
            (read(ours.qkv.weight), reordered(xBC)),
            (read(ours.conv.weight), reordered(read(theirs.conv1d.weight).squeeze(1).flip(1))),  # type: ignore[union-attr]
            (read(ours.conv.bias), reordered(read(theirs.conv1d.bias))),  # type: ignore[union-attr]
            (read(ours.z.weight), z),
            (read(ours.step.weight), dt),
            (read(ours.decay.offset), read(theirs.dt_bias)),
            (read(ours.decay.log_rate), read(theirs.A_log)),
            (read(ours.skip), read(theirs.D)),
            (read(ours.inner_norm.weight), read(theirs.norm.weight)),
            (read(ours.output.weight), read(theirs.out_proj.weight)),
        ]

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        real = allowed[:, 0, -1] if padded else None
        return theirs(x, attention_mask=None if real is None else real.to(x.dtype)), None

    copy_parameters(pairs)
    assert_parity(ours, call, pairs, (B, N), padded, 2e-5)


def test_fla() -> None:
    naive = naive_of_fla("simple_gla", "naive_recurrent_simple_gla")
    torch.manual_seed(0)
    layer, x = Mamba2(15, 3, state_size=7, short_conv=0), random(2, 37, 15, dtype=torch.float32)
    C, keys, X = F.silu(layer.qkv(x)).split(layer.qkv_sizes, -1)
    C, keys = (part.unsqueeze(2).expand(-1, -1, 3, -1) for part in (C, keys))
    step = F.softplus(layer.step(x) + layer.decay.offset)
    X = X.unflatten(-1, (3, -1))
    theirs, _ = naive(C, keys * step.unsqueeze(-1), X, -layer.decay.log_rate.exp() * step, scale=1.0)
    weights = layer.attention_weights(x) - torch.eye(37)
    assert_same(weights @ X.transpose(1, 2), theirs.transpose(1, 2), 1e-5)
