"""Native sparse attention against the naive functions of flash-linear-attention, and native-sparse-attention-pytorch.

The functions compress by the mean, with blocks of one size. The package compresses other blocks (its first one starts
before the first token) and always selects the block of the query alone in addition, so that only its attention to
selected blocks, with all selected, and its window are comparable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, TOLERANCE, assert_same_gradients, naive_of_fla, random, random_biases

from attnlab.models.nsa import NativeSparseAttention

ORACLES = {
    "test_fla": ("fla-core", "naive native sparse attention"),
    "test_selected_blocks_of_the_package": ("native-sparse-attention-pytorch", "SparseAttention"),
    "test_window_of_the_package": ("native-sparse-attention-pytorch", "SparseAttention"),
}


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the naive functions import and do not use for sequences of one length."""
    for name, function in {"fla.ops.utils": "prepare_chunk_offsets", "fla.ops.utils.pooling": "mean_pooling"}.items():
        module = ModuleType(name)
        setattr(module, function, None)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.filterwarnings("ignore:Flash Attention is not installed")
@pytest.mark.usefixtures("without_triton")
@DTYPES
@pytest.mark.parametrize(
    ("B", "N", "H", "H_kv", "d", "block", "count"),
    [(2, 29, 6, 2, 5, 2, 4), (1, 67, 4, 4, 3, 4, 5), (3, 7, 3, 1, 7, 2, 3)],
)
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, H_kv: int, d: int, block: int, count: int) -> None:
    choose, select, compress = (
        naive_of_fla("nsa", f"naive_nsa_{name}") for name in ("topk", "selection", "compression")
    )
    torch.manual_seed(0)
    sizes: Any = {"compress_block": block, "compress_stride": block, "select_block": block, "num_selected": count}
    layer = random_biases(NativeSparseAttention(H * d, H, num_kv_heads=H_kv, window_size=3, **sizes).to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (t.unflatten(-1, (-1, d)) for t in layer.qkv(x).split([H * d, H_kv * d, H_kv * d], -1))
    whole = N // block * block
    means = [t[:, :whole].unflatten(1, (-1, block)).mean(2) for t in (k, v)]
    blocks = [F.pad(t, (0, 0, 0, 0, 0, -(-N // block) - t.shape[1])) for t in means]  # the last may be incomplete
    index = choose(q, blocks[0], count, block, d**-0.5)
    k_all, v_all = (t.repeat_interleave(H // H_kv, 2).transpose(1, 2) for t in (k, v))
    near = (torch.ones(N, N).tril() - torch.ones(N, N).tril(-3)).bool()
    branches = [
        compress(q, *blocks, block, d**-0.5)[0],
        select(q, k, v, index, block, d**-0.5),
        F.scaled_dot_product_attention(q.transpose(1, 2), k_all, v_all, attn_mask=near).transpose(1, 2),
    ]
    gates = torch.sigmoid(layer.gate(x)).unflatten(-1, (3, H, 1)).unbind(2)
    theirs = sum(gate * branch for gate, branch in zip(gates, branches, strict=True))
    sources = [x, *(p for name, p in layer.named_parameters() if "pool" not in name)]
    expected = layer.output(theirs.flatten(2).to(dtype))  # type: ignore[union-attr]
    assert_same_gradients((layer(x), sources), (expected, sources), 2e-5)


def package_layer(branch: int, dtype: torch.dtype, H: int, H_kv: int, d: int, **sizes: int) -> tuple[Any, Any]:
    """Their layer with one branch, without positions and without a norm, and ours with its parameters."""
    package = pytest.importorskip("native_sparse_attention_pytorch")
    torch.manual_seed(0)
    theirs = package.SparseAttention(
        dim=H * d,
        dim_head=d,
        heads=H,
        kv_heads=H_kv,
        sliding_window_size=sizes["window"] - 1,  # without the token itself
        compress_block_size=sizes["block"],
        compress_block_sliding_stride=sizes["block"],
        selection_block_size=sizes["block"],
        num_selected_blocks=sizes["count"],
        causal=True,
        norm=False,
    ).to(dtype)
    theirs.rotary_emb.rotate_queries_with_cached_keys = lambda q, k: (q, k)
    ours = NativeSparseAttention(
        H * d,
        H,
        num_kv_heads=H_kv,
        compress_block=sizes["block"],
        compress_stride=sizes["block"],
        select_block=sizes["block"],
        num_selected=sizes["count"],
        window_size=sizes["window"],
        bias=False,
        dtype=dtype,
    )
    with torch.no_grad():
        ours.qkv.weight.copy_(theirs.to_qkv.weight)
        ours.output.weight.copy_(theirs.combine_heads.weight)
        bias = theirs.to_strategy_combine[0].bias.view(H, 3)
        bias.fill_(-1e3)
        bias[:, branch] = 1e3
    bias = theirs.to_strategy_combine[0].bias.view(H, 3).mT.flatten()
    ours.gate.register_forward_hook(lambda module, inputs, out: bias.expand_as(out))
    return ours, theirs


def assert_branch_matches(ours: Any, theirs: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = random(*shape, ours.embed_dim, dtype=dtype).requires_grad_()
    assert_same_gradients(
        (ours(x), [x, ours.qkv.weight, ours.output.weight]),
        (theirs(x), [x, theirs.to_qkv.weight, theirs.combine_heads.weight]),
        TOLERANCE[dtype],
    )


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "H_kv", "d"), [(2, 24, 6, 2, 4), (3, 15, 3, 3, 6)])
def test_selected_blocks_of_the_package(dtype: torch.dtype, B: int, N: int, H: int, H_kv: int, d: int) -> None:
    layers = package_layer(1, dtype, H, H_kv, d, block=3, count=N // 3, window=4)
    assert_branch_matches(*layers, (B, N), dtype)


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "H_kv", "d"), [(2, 23, 6, 2, 4), (3, 11, 3, 3, 6)])
def test_window_of_the_package(dtype: torch.dtype, B: int, N: int, H: int, H_kv: int, d: int) -> None:
    layers = package_layer(2, dtype, H, H_kv, d, block=3, count=3, window=5)
    assert_branch_matches(*layers, (B, N), dtype)
