"""BigBird against brute force, and against BigBird in transformers 5.24.

In transformers, the first and the last block are global, and each block draws among all blocks that are neither local
nor global, so our layer is run with that pattern. In eval mode transformers repeats the first block in place of the
random ones, so the comparison is made in training mode, without dropout.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from brute import attended, heads_of, lengths_of, matrix, same_with_gradients, tokens

from attnlab import masks
from attnlab.models.bigbird import BigBirdAttention
from attnlab.models.bigbird.reference import drawn

ORACLES = {
    "test_brute_force": ("torch", "scaled_dot_product_attention under the paper's graph"),
    "test_transformers": ("transformers", "BigBirdBlockSparseAttention"),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "block", "window", "g", "r"),
    [(2, 13, 3, 5, 2, 3, 1, 2), (1, 17, 1, 7, 3, 1, 0, 1), (3, 199, 2, 5, 7, 5, 2, 3)],
)
def test_brute_force(
    dtype: torch.dtype,
    causal: bool,
    padded: bool,
    B: int,
    N: int,
    H: int,
    d: int,
    block: int,
    window: int,
    g: int,
    r: int,
) -> None:
    torch.manual_seed(0)
    options = {"block_size": block, "window_size": window, "num_global": g, "num_random": r}
    layer = BigBirdAttention(H * d, H, **options, causal=causal).to(dtype)
    torch.nn.init.normal_(layer.qkv.bias)
    x, lengths = tokens(B, N, H * d, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    pairs = {(late, early) for late in range(-(-N // block)) for early in drawn(layer, late)}

    def attends(h: int, i: int, j: int) -> bool:
        a, b = i // block, j // block
        return abs(a - b) <= window // 2 or a < g or b < g or (a, b) in pairs or (b, a) in pairs

    allowed = matrix(attends, H, N, causal, torch.arange(N) < lengths[:, None])
    theirs = layer.output(attended(*heads_of(layer.qkv, x, H), allowed).transpose(1, 2).flatten(2))
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    kept = allowed.any(-1).any(1)
    same_with_gradients(ours[kept], theirs[kept], [x, *layer.parameters()], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("B", "H", "d", "block", "count", "r"), [(2, 3, 5, 2, 13, 2), (1, 2, 3, 3, 11, 1)])
def test_transformers(
    dtype: torch.dtype,
    padded: bool,
    B: int,
    H: int,
    d: int,
    block: int,
    count: int,
    r: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("transformers")
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird as theirs

    N, D = block * count, H * d
    config = BigBirdConfig(
        hidden_size=D,
        num_attention_heads=H,
        block_size=block,
        num_random_blocks=r,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=N,
    )
    torch.manual_seed(0)
    peer: Any = theirs.BigBirdBlockSparseAttention(config, seed=7).to(dtype).train()
    layer = BigBirdAttention(D, H).to(dtype)
    with torch.no_grad():
        parts = (peer.query, peer.key, peer.value)
        layer.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        layer.qkv.bias.copy_(torch.cat([part.bias for part in parts]).normal_())
        for part, bias in zip(parts, layer.qkv.bias.chunk(3), strict=True):
            part.bias.copy_(bias)
    plans: list[Any] = []
    plan = peer._bigbird_block_rand_mask_with_head
    monkeypatch.setattr(
        peer, "_bigbird_block_rand_mask_with_head", lambda **options: plans.append(plan(**options)) or plans[-1]
    )

    x, lengths = tokens(B, N, D, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    real = (torch.arange(N) < lengths[:, None]).to(dtype)
    blocked, band, rows, columns = theirs.BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    out = peer(x, band, rows, columns, blocked, blocked)[0]

    pattern = torch.zeros(1, H, count, count, dtype=torch.bool)
    position = torch.arange(count)
    pattern |= (position[:, None] - position).abs() <= 1
    pattern[..., [0, -1], :] = pattern[..., [0, -1]] = True
    for head, drawn_blocks in enumerate(plans[0]):
        for row, block_indices in enumerate(drawn_blocks.tolist()):
            pattern[0, head, row + 1, block_indices] = True
    layer.attention_pattern = lambda length: masks.block_sparse(block, pattern)  # type: ignore[method-assign]
    layer.output = torch.nn.Identity()  # type: ignore[assignment]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    kept = real.bool()
    same_with_gradients(ours[kept], out.flatten(2)[kept], [x], TOLERANCE[dtype])
    wave = tokens(*ours.shape, dtype=dtype) * real.unsqueeze(-1)
    (ours * wave).sum().backward()
    (out.flatten(2) * wave).sum().backward()
    for gradient, part in zip(layer.qkv.weight.grad.chunk(3), parts, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(gradient, part.weight.grad, rtol=0, atol=10 * TOLERANCE[dtype])
