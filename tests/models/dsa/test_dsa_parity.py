"""DeepSeek sparse attention against flash-linear-attention, and its indexer against that of transformers.

With many index heads no two keys have an index score of zero, for which both would select any key.
"""

from __future__ import annotations

import pytest
import torch
from comparison import (
    DTYPES,
    PADDED,
    assert_same,
    assert_same_gradients,
    naive_of_fla,
    padding_lengths,
    random,
    random_biases,
)

from attnlab import masks
from attnlab.models.dsa import DeepSeekSparseAttention

ORACLES = {
    "test_fla": ("fla-core", "naive DeepSeek sparse attention"),
    "test_the_indexer_of_transformers": ("transformers", "DeepseekV32Indexer"),
}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "k"), [(2, 11, 3, 5, 4), (1, 131, 2, 7, 16), (3, 7, 5, 3, 9)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int, k: int) -> None:
    naive = naive_of_fla("dsa", "naive_dsa")
    torch.manual_seed(0)
    layer = DeepSeekSparseAttention(H * d, H, top_k=k, index_heads=24, index_dim=6, causal=True)
    layer = random_biases(layer.to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, key, v = (part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1))
    q_index, w, k_index = layer.indexer(x)
    theirs = naive(q, key, v, q_index.transpose(1, 2), k_index, w.mT, topk=k)
    sources = [x, *layer.qkv.parameters(), *layer.output.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs.flatten(2).to(dtype)), sources), 2e-5)


@DTYPES
@PADDED
@pytest.mark.parametrize(
    ("B", "N", "D", "h", "d", "k"), [(3, 23, 12, 24, 6, 5), (1, 7, 10, 1, 4, 7), (2, 67, 14, 32, 8, 16)]
)
def test_the_indexer_of_transformers(
    dtype: torch.dtype, padded: bool, B: int, N: int, D: int, h: int, d: int, k: int
) -> None:
    transformers = pytest.importorskip("transformers")
    source = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
    config = transformers.DeepseekV32Config(
        hidden_size=D, q_lora_rank=D, index_n_heads=h, index_head_dim=d, index_topk=k, qk_rope_head_dim=d
    )
    torch.manual_seed(0)
    theirs = random_biases(source.DeepseekV32Indexer(config, 0).to(dtype))
    layer = DeepSeekSparseAttention(
        D, 1, top_k=k, index_heads=h, index_dim=d, causal=True, positions="rotary", dtype=dtype
    )
    pairs = {"query": "wq_b", "key": "wk", "key_norm": "k_norm", "weight": "weights_proj"}
    for ours, name in pairs.items():
        layer.indexer.get_submodule(ours).load_state_dict(theirs.get_submodule(name).state_dict())
    x, (lengths, real) = random(B, N, D, dtype=dtype), padding_lengths(B, N, padded)
    allowed = (real[:, None].expand(B, N, N)).tril()
    rotation = source.DeepseekV32RotaryEmbedding(config)(x, torch.arange(N)[None])
    chosen = theirs(x, x, rotation, allowed, torch.arange(N)[None]).long()
    expected = torch.zeros(B, N, N, dtype=torch.bool).scatter(-1, chosen, True) & allowed
    weights = layer.attention_weights(x, mask=masks.padding(lengths) if padded else None)
    assert_same((weights[:, 0] > 0).to(dtype), expected.to(dtype))
