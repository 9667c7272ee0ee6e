"""The options of softmax attention in every backend: shared keys, a sink, a cap on the scores, values of any width.

Sizes are primes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_match, randn, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlab.masks import (
    Mask,
    block_local,
    block_sparse,
    block_summary,
    causal,
    dilated,
    documents,
    from_tensor,
    global_tokens,
    padding,
    per_head,
    sliding_window,
    strided,
)
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import MAX_SHARED_QUERIES, SoftmaxMap, masked_softmax, softmax_attention

B, H, G, N, M, d, w = 2, 6, 3, 197, 211, 5, 3

LENGTHS = torch.tensor([37, 101])
MASKS: dict[str, Mask | None] = {
    "everything": None,
    "causal": causal(),
    "window": causal() & sliding_window(7),
    "padding": padding(LENGTHS),
    "padded queries": causal() & padding(LENGTHS, mask_queries=True),
    "empty item": padding(torch.tensor([0, 101])),
    "strided": causal() & strided(7),
    "strided, padded": causal() & strided(7) & padding(LENGTHS),
    "strided, padded on the left": strided(7) & padding(LENGTHS, side="left", max_length=N),
    "strided, packed": causal() & strided(5) & documents(torch.arange(M) // 23),
    "dilated": dilated(5, 3),
    "global tokens": sliding_window(5) | global_tokens(3),
    "scattered blocks": causal()
    & (sliding_window(3) | block_sparse(8, torch.rand(27, 27, generator=torch.Generator().manual_seed(7)) > 0.9)),
    "summaries": block_summary(11, 2) & causal(),
    "per head": causal() & per_head([*[block_local(11)] * 2, strided(13), sliding_window(4), *[block_summary(11)] * 2]),
    "documents": causal() & documents(torch.arange(M) // 23),
    "a matrix": from_tensor(torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(5)) > 0.9),
}


every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@every_mask
@pytest.mark.parametrize("softcap", [None, 1.7])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("heads", [H, H // G])
def test_every_option_in_every_backend(mask: Mask | None, softcap: float | None, with_sink: bool, heads: int) -> None:
    q, k, v, sink = randn((B, H, N, d), (B, heads, N, d), (B, heads, N, d), (H,))
    bound = None if mask is None else mask.bind(N, shape=(B, H))
    options: dict[str, Any] = {"sink": sink if with_sink else None, "softcap": softcap}
    out = softmax_attention(q, k, v, bound, **options)
    assert_match(out, reference(q, k, v, mask, **options), [q, k, v, *([sink] if with_sink else [])])


@pytest.mark.parametrize("queries", [1, 3, MAX_SHARED_QUERIES, MAX_SHARED_QUERIES + 1])
@pytest.mark.parametrize("mask", [None, causal(), causal() & sliding_window(7), padding(LENGTHS)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_few_queries_use_shared_keys_without_copies(queries: int, mask: Mask | None, biased: bool) -> None:
    q, k, v = randn((B, H, queries, d), (B, H // G, M, d), (B, H // G, M, d))
    bias = torch.randn(H, queries, M, dtype=torch.float64) if biased else None
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, None if mask is None else mask.bind(queries, M, shape=(B, H)), bias)
    assert (records[0].name == "shared") == (queries <= MAX_SHARED_QUERIES)
    assert_match(out, reference(q, k, v, mask, bias), [q, k, v])
    matrix = from_tensor(torch.rand(B, H, queries, M, generator=torch.Generator().manual_seed(5)) > 0.5)
    out = softmax_attention(q, k, v, matrix.bind(queries, M), bias)
    assert_match(out, reference(q, k, v, matrix, bias), [q, k, v])


def test_key_heads_must_divide_query_heads() -> None:
    q, k, v = randn((B, 6, 3, d), (B, 4, 3, d), (B, 4, 3, d))
    with pytest.raises(ValueError, match=r"key heads \(4\) must divide the number of query heads \(6\)"):
        softmax_attention(q, k, v)


@every_mask
@pytest.mark.parametrize("width", [w, 2 * d + 1])
def test_values_of_another_width(mask: Mask | None, width: int) -> None:
    q, k, v = randn((B, H, N, d), (B, H, N, d), (B, H, N, width))
    out = softmax_attention(q, k, v, None if mask is None else mask.bind(N, shape=(B, H)))
    assert_match(out, reference(q, k, v, mask), [q, k, v])


def test_dropout_of_values_of_another_width_keeps_the_scale() -> None:
    q, k, v = randn((B, H, N, d), (B, H, N, d), (B, H, N, 2 * d))
    torch.manual_seed(0)
    mean = torch.stack([softmax_attention(q, k, v, dropout=0.3).detach() for _ in range(200)]).mean(0)
    torch.testing.assert_close(mean, reference(q, k, v, None).detach(), rtol=0, atol=0.12)


# A sink


def test_both_implementations_of_a_sink_agree() -> None:
    q, k, v, sink = randn((B, H, 7, d), (B, H, 7, d), (B, H, 7, d), (H,))
    kernel = Kernel(0.3, sink)
    matrix = torch.randn(B, 1, 7, 7, dtype=torch.float64)
    for rule, triangle in ((None, False), (None, True), (matrix, False), (matrix > 0, False)):
        fused = kernel(q, k, v, rule, causal=triangle)
        assert_match(fused, kernel._with_a_key(q, k, v, sink, rule, triangle), [q, k, v, sink])


def test_a_learned_bias_and_a_sink_learn_together() -> None:
    q, k, v, sink, bias = randn((B, H, N, d), (B, H, N, d), (B, H, N, d), (H,), (H, N, N))
    assert_match(
        softmax_attention(q, k, v, None, bias, sink=sink), reference(q, k, v, None, bias, sink), [q, sink, bias]
    )


@pytest.mark.parametrize("with_sink", [False, True])
def test_dropout_keeps_the_mean(with_sink: bool) -> None:
    q, k, v, sink = randn((B, H, 31, d), (B, H, 31, d), (B, H, 31, d), (H,))
    options = {"sink": sink} if with_sink else {}
    torch.manual_seed(0)
    outs = torch.stack([softmax_attention(q, k, v, **options, dropout=0.2) for _ in range(300)])
    torch.testing.assert_close(outs.mean(0), reference(q, k, v, None, **options), rtol=0, atol=0.15)
    assert not with_sink or torch.autograd.grad(outs.sum(), sink)[0].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sink_keeps_the_dtype(dtype: torch.dtype) -> None:
    exact = randn((B, H, N, d), (B, H, N, d), (B, H, N, d), (H,))
    q, k, v, sink = (t.detach().to(dtype) for t in exact)
    out = softmax_attention(q, k, v, causal().bind(N), sink=sink)
    assert out.dtype == dtype
    close = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(out.double(), reference(*exact[:3], causal(), sink=exact[3]), rtol=0, atol=close)


# By rows


def test_large_matrices_are_computed_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", B * H * 11 * (11 + 7))
    q, k, v = randn((B, H, N, d), (B, H, N, d), (B, H, N, w))
    shapes = []

    def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
        shapes.append(scores.shape[2:])
        return masked_softmax(scores, permitted)

    with record_dispatch() as records:
        out = RowwiseMap(q, k, (causal() & sliding_window(7)).bind(N), None, normalize).apply(v)
    assert max(shape[0] for shape in shapes) == 11
    assert max(shape[1] for shape in shapes) == 11 + 6, "a tile has only the keys that its rows attend to"
    assert "11 of 197 rows at a time" in str(records[0])
    assert_match(out, reference(q, k, v, causal() & sliding_window(7)), [q, k, v])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rule", [sliding_window(7), causal() & sliding_window(7) & padding(torch.tensor([500, 1031]))], ids=str
)
def test_a_narrow_mask_is_tiled_whatever_its_length(rule: Mask, dtype: torch.dtype) -> None:
    length, cells = 1031, []
    q, k, v = (t.to(dtype) for t in randn((B, H, length, d), (B, H, length, d), (B, H, length, w)))

    def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
        cells.append(scores.numel())
        return masked_softmax(scores, permitted)

    RowwiseMap(q.detach(), k.detach(), rule.bind(length, shape=(B, H)), None, normalize).apply(v.detach())
    assert sum(cells) <= B * H * length * (64 + 13)
    assert max(cells) <= B * H * 64 * (64 + 13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_tiled_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", B * H * N * 7)
    q, k, v = (t.to(dtype) for t in randn((B, H, N, d), (B, H, N, d), (B, H, N, w)))
    with record_dispatch() as records:
        RowwiseMap(q, k, None, None, masked_softmax).apply(v)
    assert "7 of 197 rows at a time" in str(records[0])


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**4)
    q, k, v = randn((1, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 2))
    bound = (causal() & sliding_window(2)).bind(5)
    assert torch.autograd.gradgradcheck(
        lambda q, k, v: RowwiseMap(q, k, bound, None, masked_softmax).apply(v).tanh(), (q, k, v)
    )


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_any_tile_size_matches(queries: int, keys: int, size: int) -> None:
    q, k, v = randn((1, 2, queries, d), (1, 2, keys, d), (1, 2, keys, w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2 * keys * size)
        out = RowwiseMap(q, k, None, None, masked_softmax).apply(v)
    torch.testing.assert_close(out, reference(q, k, v, None))


# The lazy matrix


def test_stream_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = randn((B, H, N, d), (B, H // G, N, d))
    weights, largest = SoftmaxMap(q, k, (causal() & sliding_window(7)).bind(N, shape=(B, H))), []
    whole = weights.materialize()
    original = weights._rows
    monkeypatch.setattr(weights, "_rows", lambda rows: largest.append(len(rows)) or original(rows))
    torch.testing.assert_close(torch.cat([part for _, part in weights.stream(19)], 2), whole)
    assert largest == [19] * 10 + [7]


@pytest.mark.parametrize(
    ("select", "error", "message"),
    [
        (
            lambda weights: weights.materialize(rows=[N]),
            IndexError,
            f"row {N} is out of range; there are {N}, counted from 0",
        ),
        (lambda weights: weights.materialize(heads=[-7]), IndexError, "head -7 is out of range; there are 6"),
        (lambda weights: weights.materialize(rows=[0.5]), IndexError, "rows must be a list of integers"),
        (lambda weights: weights.pooled(0), ValueError, r"pooled\(blocks\) takes an integer of at least 1, not 0"),
        (lambda weights: weights.pooled(torch.zeros(3).long()), ValueError, rf"of shape \({N},\) or \(batch, {N}\)"),
    ],
)
def test_invalid_selections_are_refused(select: Any, error: type[Exception], message: str) -> None:
    q, k = randn((B, H, N, d), (B, H, N, d))
    with pytest.raises(error, match=message):
        select(SoftmaxMap(q, k))


def test_pooled_by_size_and_by_index() -> None:
    q, k = randn((B, H, N, d), (B, H, N, d))
    weights = SoftmaxMap(q, k, causal().bind(N))
    sums = torch.stack([part.sum(-1) for part in weights.materialize().split(50, -1)], -1)
    torch.testing.assert_close(weights.pooled(50), sums)
    blocks = torch.stack([torch.arange(N) % 3, torch.arange(N) // 100])
    expected = torch.stack([weights.materialize()[b][..., blocks[b] == 1].sum(-1) for b in range(B)])
    torch.testing.assert_close(weights.pooled(blocks)[..., 1], expected)


def test_entropy() -> None:
    q = torch.zeros(1, 1, 5, d, dtype=torch.float64)
    entropy = SoftmaxMap(q, q, causal().bind(5)).entropy()
    torch.testing.assert_close(entropy[0, 0], torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64).log())
