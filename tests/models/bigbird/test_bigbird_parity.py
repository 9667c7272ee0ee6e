"""BigBird against brute force, and against BigBird in transformers 5.24.

In transformers, the first and the last block are global, and each block draws among all blocks that are neither local
nor global, so our layer is run with that pattern. In eval mode transformers repeats the first block in place of the
random ones, so the comparison is made in training mode, without dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    TOLERANCE,
    assert_parity,
    assert_softmax_under,
    copy_parameters,
    random_biases,
)
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.bigbird import BigBirdAttention
from attnlab.models.bigbird.reference import drawn

ORACLES = {
    "test_brute_force": ("torch", "scaled_dot_product_attention under the paper's graph"),
    "test_transformers": ("transformers", "BigBirdBlockSparseAttention"),
}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "b", "w", "g", "r"),
    [(2, 13, 3, 5, 2, 3, 1, 2), (1, 17, 1, 7, 3, 1, 0, 1), (3, 199, 2, 5, 7, 5, 2, 3)],
)
def test_brute_force(
    dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, b: int, w: int, g: int, r: int
) -> None:
    torch.manual_seed(0)
    options = {"block_size": b, "window_size": w, "num_global": g, "num_random": r}
    layer = random_biases(BigBirdAttention(H * d, H, **options, causal=causal).to(dtype))
    pairs = {(late, early) for late in range(-(-N // b)) for early in drawn(layer, late)}

    def attends(h: int, i: int, j: int) -> bool:
        x, y = i // b, j // b
        return abs(x - y) <= w // 2 or x < g or y < g or (x, y) in pairs or (y, x) in pairs

    assert_softmax_under(layer, attends, (B, N), padded)


@DTYPES
@PADDED
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
    from transformers.models.big_bird import modeling_big_bird as source

    N, D = block * count, H * d
    sizes = {"hidden_size": D, "num_attention_heads": H, "block_size": block, "num_random_blocks": r}
    config = BigBirdConfig(**sizes, attention_probs_dropout_prob=0.0, max_position_embeddings=N)
    torch.manual_seed(0)
    theirs: Any = random_biases(source.BigBirdBlockSparseAttention(config, seed=7).to(dtype)).train()
    layer = BigBirdAttention(D, H).to(dtype)
    layer.output = nn.Identity()  # type: ignore[assignment]
    plans: list[Any] = []
    plan = theirs._bigbird_block_rand_mask_with_head
    monkeypatch.setattr(
        theirs, "_bigbird_block_rand_mask_with_head", lambda **options: plans.append(plan(**options)) or plans[-1]
    )

    def their_pattern() -> Tensor:
        pattern, position = torch.zeros(1, H, count, count, dtype=torch.bool), torch.arange(count)
        pattern |= (position[:, None] - position).abs() <= 1
        pattern[..., [0, -1], :] = pattern[..., [0, -1]] = True
        for head, blocks_of_rows in enumerate(plans[0]):
            for row, blocks in enumerate(blocks_of_rows.tolist()):
                pattern[0, head, row + 1, blocks] = True
        return pattern

    layer.attention_pattern = lambda length: masks.block_sparse(block, their_pattern())  # type: ignore[method-assign]

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        real = allowed[:, 0, 0].to(dtype)
        blocked, band, rows, columns = source.BigBirdModel.create_masks_for_block_sparse_attn(real, block)
        return theirs(x, band, rows, columns, blocked, blocked)[0].flatten(2), None

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        parts = theirs.query, theirs.key, theirs.value
        return [
            (read(p), torch.cat([read(getattr(part, name)) for part in parts]))
            for name, p in layer.qkv.named_parameters()
        ]

    copy_parameters(pairs)
    assert_parity(layer, call, pairs, (B, N), padded, TOLERANCE[dtype])
