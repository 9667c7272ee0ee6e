"""Chunked attention against the text attention of Llama 4 in transformers 5.24, with its chunked mask.

Their mask counts chunks from the first real token of each item, ours from the first position. Both agree where the
padding is on the right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import (
    DTYPES,
    PADDED,
    assert_parity,
    copy_parameters,
    from_transformers,
    parameters_of_transformers,
    rotation_of,
)
from torch import Tensor

from attnlab import masks
from attnlab.models.chunked import ChunkedAttention

ORACLES = {"test_llama4": ("transformers", "Llama4TextAttention")}


def llama4(H: int, D: int, chunk: int, positions: str, dtype: torch.dtype) -> Any:
    """Their layer, without the norm of queries and keys."""
    sizes = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": D // H}
    options = {"attention_bias": True, "attn_temperature_tuning": False, "use_qk_norm": False, "num_hidden_layers": 1}
    pattern = {"attention_chunk_size": chunk, "no_rope_layers": [int(positions != "none")]}
    return from_transformers("llama4", "Llama4Text", dtype, **sizes, **options, **pattern)


def their_mask(config: Any, x: Tensor, real: Tensor) -> Tensor:
    from transformers.masking_utils import create_chunked_causal_mask

    position_ids = torch.arange(x.shape[1])[None]
    return create_chunked_causal_mask(config, x, real.long(), None, position_ids, allow_is_causal_skip=False)


@DTYPES
@pytest.mark.parametrize("positions", ["none", "rotary(base=500000, layout=interleaved)"])
@pytest.mark.parametrize(("B", "N", "H", "D", "chunk"), [(2, 13, 3, 12, 5), (1, 17, 1, 2, 3), (3, 7, 2, 20, 11)])
@PADDED
def test_llama4(dtype: torch.dtype, positions: str, B: int, N: int, H: int, D: int, chunk: int, padded: bool) -> None:
    theirs = llama4(H, D, chunk, positions, dtype)
    layer = ChunkedAttention(D, H, chunk_size=chunk, causal=True, positions=positions).to(dtype)
    copy_parameters(pairs := parameters_of_transformers(layer, theirs))
    rotation = rotation_of(theirs, N, dtype)

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        return theirs(x, rotation, their_mask(theirs.config, x, allowed[:, 0, -1]))[0], None

    # in float64 too, since their softmax is always float32
    assert_parity(layer, call, pairs, (B, N), padded, 1e-5)


def test_left_padding_moves_only_their_chunks() -> None:
    config = llama4(1, 2, 3, "none", torch.float32).config
    mask = their_mask(config, torch.zeros(1, 8, 2), torch.arange(8)[None] >= 2)
    theirs = (mask[0, 0] == 0)[2:, 2:]
    assert torch.equal(theirs, (masks.causal() & masks.block_local(3)).materialize(6))
    padding = masks.padding(torch.tensor([6]), side="left", max_length=8)
    ours = (masks.causal() & masks.block_local(3) & padding).materialize(8)[0, 0, 2:, 2:]
    assert not torch.equal(theirs, ours)
