"""Longformer against its attention in transformers 5.24, and against brute force.

Theirs is always bidirectional with a float32 softmax, and its ``attention_window`` counts both sides without the token
itself, 2(w - 1). The length must be a multiple of it.
"""

from __future__ import annotations

import pytest
import torch
from brute import attended, heads_of, lengths_of, matrix, same_with_gradients, tokens

from attnlab import masks
from attnlab.models.longformer import LongformerAttention

ORACLES = {
    "test_brute_force": ("torch", "scaled_dot_product_attention under the paper's pattern"),
    "test_transformers": ("transformers", "LongformerSelfAttention"),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "window", "g"), [(2, 13, 3, 5, 3, 2), (1, 17, 1, 7, 2, 1), (3, 199, 2, 5, 11, 7)]
)
def test_brute_force(
    dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, window: int, g: int
) -> None:
    torch.manual_seed(0)
    layer = LongformerAttention(H * d, H, window_size=window, num_global=g, causal=causal).to(dtype)
    for projection in (layer.qkv, layer.qkv_global):
        torch.nn.init.normal_(projection.weight, std=0.3)
        torch.nn.init.normal_(projection.bias)
    x, lengths = tokens(B, N, H * d, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    allowed = matrix(lambda h, i, j: abs(i - j) < window or i < g or j < g, H, N, causal, real)
    local, global_ = (attended(*heads_of(qkv, x, H), allowed) for qkv in (layer.qkv, layer.qkv_global))
    theirs = layer.output(torch.cat([global_[:, :, :g], local[:, :, g:]], 2).transpose(1, 2).flatten(2))
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    rows = allowed.any(-1).any(1)
    same_with_gradients(ours[rows], theirs[rows], [x, *layer.parameters()], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "window", "g"), [(2, 24, 3, 5, 3, 2), (1, 16, 2, 3, 3, 1), (3, 60, 1, 7, 6, 5)]
)
def test_transformers(dtype: torch.dtype, padded: bool, B: int, N: int, H: int, d: int, window: int, g: int) -> None:
    pytest.importorskip("transformers")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    D = H * d
    config = LongformerConfig(
        hidden_size=D,
        num_attention_heads=H,
        attention_window=[2 * (window - 1)],
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    peer = LongformerSelfAttention(config, 0).to(dtype)
    layer = LongformerAttention(D, H, window_size=window, num_global=g).to(dtype)
    with torch.no_grad():
        for own, suffix in ((layer.qkv, ""), (layer.qkv_global, "_global")):
            parts = [getattr(peer, f"{part}{suffix}") for part in ("query", "key", "value")]
            own.weight.copy_(torch.cat([part.weight for part in parts]))
            own.bias.copy_(torch.cat([part.bias.normal_() for part in parts]))
    layer.output = torch.nn.Identity()  # type: ignore[assignment]
    lengths = lengths_of(B, N, padded)
    position = torch.arange(N)
    real, is_global = position < lengths[:, None], (position < g).expand(B, N)
    their_mask = torch.where(real, torch.where(is_global, 10000.0, 0.0), -10000.0).to(dtype)
    a, b = (tokens(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    theirs = peer(a, their_mask, ~real, is_global & real, True)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    direction = tokens(*ours.shape, dtype=dtype)
    (theirs * direction).sum().backward()
    (ours * direction).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-5)
    for own, suffix in ((layer.qkv, ""), (layer.qkv_global, "_global")):
        parts = [getattr(peer, f"{part}{suffix}") for part in ("query", "key", "value")]
        expected = torch.cat([part.weight.grad for part in parts])
        scale = 1 + expected.abs()
        torch.testing.assert_close(own.weight.grad / scale, expected / scale, rtol=0, atol=1e-5)
