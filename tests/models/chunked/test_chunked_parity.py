"""Chunked attention against the text attention of Llama 4 in transformers 5.24, with its chunked mask.

Their mask counts chunks from the first real token of each item, ours from the first position. Both agree where the
padding is on the right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import masks
from attnlab.models.chunked import ChunkedAttention

ORACLES = {"test_llama4": ("transformers", "Llama4TextAttention")}

TOLERANCE = 1e-5  # in float64 too, since their softmax is always float32
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tokens(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def llama4(H: int, D: int, chunk: int, positions: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Their layer, without the norm of queries and keys, and its configuration."""
    pytest.importorskip("transformers")
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

    config = Llama4TextConfig(
        hidden_size=D,
        num_attention_heads=H,
        num_key_value_heads=H,
        head_dim=D // H,
        num_hidden_layers=1,
        attention_chunk_size=chunk,
        attention_bias=True,
        attn_temperature_tuning=False,
        use_qk_norm=False,
        no_rope_layers=[int(positions != "none")],
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = Llama4TextAttention(config, layer_idx=0).to(dtype)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        torch.nn.init.normal_(projection.bias)
    return layer, config


def ours_of(theirs: Any, H: int, D: int, chunk: int, positions: str, dtype: torch.dtype) -> ChunkedAttention:
    layer = ChunkedAttention(D, H, chunk_size=chunk, causal=True, positions=positions).to(dtype)
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(getattr(theirs, f"{part}_proj"), name) for part in "qkv"]
            getattr(layer.qkv, name).copy_(torch.cat(parts))
        layer.output.load_state_dict(theirs.o_proj.state_dict())
    return layer


@DTYPES
@pytest.mark.parametrize("positions", ["none", "rotary(base=500000, layout=interleaved)"])
@pytest.mark.parametrize(("B", "N", "H", "D", "chunk"), [(2, 13, 3, 12, 5), (1, 17, 1, 2, 3), (3, 7, 2, 20, 11)])
@pytest.mark.parametrize("padded", [False, True])
def test_llama4(dtype: torch.dtype, positions: str, B: int, N: int, H: int, D: int, chunk: int, padded: bool) -> None:
    theirs, config = llama4(H, D, chunk, positions, dtype)
    from transformers.masking_utils import create_chunked_causal_mask
    from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

    layer = ours_of(theirs, H, D, chunk, positions, dtype)
    a, b = (tokens(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    position_ids = torch.arange(N).unsqueeze(0)
    lengths = torch.tensor([N - 2, N, N - 1][:B])
    real = (torch.arange(N) < lengths[:, None]) if padded else torch.ones(B, N, dtype=torch.bool)
    their_mask = create_chunked_causal_mask(config, a, real.long(), None, position_ids, allow_is_causal_skip=False)
    cos_sin = Llama4TextRotaryEmbedding(config)(a, position_ids)
    expected = theirs(a, cos_sin, their_mask)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    same(ours, expected)
    direction = tokens(*ours.shape, dtype=dtype)
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    same(b.grad, a.grad)
    for name in ("weight", "bias"):
        parts = [getattr(getattr(theirs, f"{part}_proj"), name).grad for part in "qkv"]
        same(getattr(layer.qkv, name).grad, torch.cat(parts))
        same(getattr(layer.output, name).grad, getattr(theirs.o_proj, name).grad)


def test_left_padding_moves_only_their_chunks() -> None:
    _, config = llama4(1, 2, 3, "none", torch.float32)
    from transformers.masking_utils import create_chunked_causal_mask

    real = torch.arange(8) >= 2
    their_mask = create_chunked_causal_mask(config, torch.zeros(1, 8, 2), real.long()[None], None, None)
    theirs = (their_mask[0, 0] == 0)[2:, 2:]
    assert torch.equal(theirs, (masks.causal() & masks.block_local(3)).materialize(6))
    padding = masks.padding(torch.tensor([6]), side="left", max_length=8)
    ours = (masks.causal() & masks.block_local(3) & padding).materialize(8)[0, 0, 2:, 2:]
    assert not torch.equal(theirs, ours)
