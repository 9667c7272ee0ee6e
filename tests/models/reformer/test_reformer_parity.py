"""Reformer attention against brute force, and against Reformer in transformers 5.24.

In transformers, the first chunk of a round also attends to the last one, and a key counts once for every round that
finds it. So it is compared in one round, with a last chunk of padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    TOLERANCE,
    assert_same_gradients,
    assert_same_scaled,
    padding_lengths,
    perturbed,
    random,
)
from torch import Tensor

from attnlab import masks
from attnlab.models.reformer import ReformerAttention

ORACLES = {
    "test_brute_force": ("torch", "scaled_dot_product_attention over the keys of a loop"),
    "test_transformers": ("transformers", "LSHSelfAttention"),
}


def keys_of(layer: ReformerAttention, q: Tensor, rotations: Tensor) -> list[list[int]]:
    """The keys of each token in one sequence and head, q (N, d), from all rounds, rotations (r, d, b / 2)."""
    N, c = len(q), layer.chunk_length
    keys: list[set[int]] = [set() for _ in range(N)]
    for R in rotations:
        buckets = [0] * N
        if layer.num_buckets > 1:
            buckets = [
                max(range(layer.num_buckets), key=[*row, *(-v for v in row)].__getitem__) for row in (q @ R).tolist()
            ]
        order = sorted(range(N), key=lambda i: (buckets[i], i))
        if layer.causal:
            for i in range(N):
                keys[i] |= set([j for j in range(i) if buckets[j] == buckets[i]][-c:])
        else:
            chunks = [order[start : start + c] for start in range(0, N, c)]
            for before, chunk in zip([[], *chunks], chunks, strict=False):
                for i in chunk:
                    keys[i] |= {*before, *chunk} - {i}
    return [sorted(found) or [i] for i, found in enumerate(keys)]


@DTYPES
@PADDED
@CAUSAL
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 23, 2, 5), {"num_buckets": 6, "num_hashes": 3, "chunk_length": 4}),
        ((2, 19, 3, 3), {"num_buckets": 2, "num_hashes": 1, "chunk_length": 7}),
        ((2, 13, 2, 7), {"num_buckets": 1, "num_hashes": 2, "chunk_length": 5}),
        ((1, 11, 5, 2), {"num_buckets": 4, "num_hashes": 2, "chunk_length": 1}),
    ],
)
def test_brute_force(
    dtype: torch.dtype, padded: bool, causal: bool, shape: tuple[int, int, int, int], options: dict[str, int]
) -> None:
    B, N, H, d = shape
    torch.manual_seed(0)
    layer = perturbed(ReformerAttention(H * d, H, causal=causal, **options)).to(dtype)
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    lengths, real = padding_lengths(B, N, padded)
    Q, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(2, -1))
    allowed = torch.zeros(B, H, N, N, dtype=torch.bool)
    for b, length in enumerate(lengths.tolist()):
        for h in range(H):
            for i, keys in enumerate(keys_of(layer, Q[b, h, :length].detach(), layer.rotations[h])):
                allowed[b, h, i, keys] = True
    allowed[..., 0] |= ~allowed.any(-1)  # padding, which is not compared
    K = F.rms_norm(Q, (d,), eps=1e-6) / d**0.5
    expected = F.scaled_dot_product_attention(Q, K, V, attn_mask=allowed, scale=1.0)
    expected = layer.output(expected.transpose(1, 2).flatten(2))
    out = layer(x, mask=masks.padding(lengths) if padded else None)
    sources = [x, *layer.parameters()]
    assert_same_gradients((out[real], sources), (expected[real], sources), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize(
    ("shape", "chunks", "buckets", "is_decoder"),
    [((3, 2, 5), 4, 6, False), ((2, 3, 4), 3, 2, False), ((2, 3, 5), 1, 1, True)],
)
def test_transformers(
    dtype: torch.dtype, shape: tuple[int, int, int], chunks: int, buckets: int, is_decoder: bool
) -> None:
    pytest.importorskip("transformers")
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    (B, H, d), c = shape, 5
    N = c * (chunks + (chunks > 1))
    config = ReformerConfig(
        hidden_size=H * d,
        num_attention_heads=H,
        attention_head_size=d,
        num_buckets=buckets,
        num_hashes=1,
        lsh_attn_chunk_length=c,
        lsh_attention_probs_dropout_prob=0.0,
        hash_seed=3,
        is_decoder=is_decoder,
    )
    torch.manual_seed(0)
    theirs: Any = LSHSelfAttention(config).to(dtype).eval()
    options = {"num_buckets": buckets, "num_hashes": 1, "chunk_length": c, "causal": is_decoder, "bias": False}
    layer = ReformerAttention(H * d, H, dtype=dtype, **options)
    torch.manual_seed(3)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([theirs.query_key.weight, theirs.value.weight]))
        torch.nn.init.eye_(layer.output.weight)
        layer.rotations.copy_(torch.randn(H, d, 1, buckets // 2, dtype=dtype).transpose(1, 2))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    real = (torch.arange(N) < chunks * c).expand(B, N)
    mask = masks.padding(real.sum(-1)) if chunks > 1 else None
    ours = layer(x, mask=mask)[real]
    expected = theirs(x, attention_mask=None if mask is None else real).hidden_states[real]
    assert_same_gradients((ours, [x]), (expected, [x]), TOLERANCE[dtype])
    (gradient,) = torch.autograd.grad(ours.square().sum(), [layer.qkv.weight])
    wanted = torch.autograd.grad(expected.square().sum(), [theirs.query_key.weight, theirs.value.weight])
    assert_same_scaled(gradient, torch.cat(wanted), TOLERANCE[dtype])
