"""The parts of the softmax engine: shared keys, a sink, a cap, values of any width; each is its formula, on every way.

Sizes are primes.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
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
    "padding of queries": causal() & padding(LENGTHS, mask_queries=True),
    "an empty item": padding(torch.tensor([0, 101])),
    "every few": causal() & strided(7),
    "every few, padded": causal() & strided(7) & padding(LENGTHS),
    "every few, padded on the left": strided(7) & padding(LENGTHS, side="left", max_length=N),
    "every few, packed": causal() & strided(5) & documents(torch.arange(M) // 23),
    "every few of a window": dilated(5, 3),
    "global tokens": sliding_window(5) | global_tokens(3),
    "scattered blocks": causal()
    & (sliding_window(3) | block_sparse(8, torch.rand(27, 27, generator=torch.Generator().manual_seed(7)) > 0.9)),
    "summaries": block_summary(11, 2) & causal(),
    "a rule a head": causal()
    & per_head([*[block_local(11)] * 2, strided(13), sliding_window(4), *[block_summary(11)] * 2]),
    "documents": causal() & documents(torch.arange(M) // 23),
    "a matrix": from_tensor(torch.rand(B, H, N, N, generator=torch.Generator().manual_seed(5)) > 0.9),
}


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask | None,
    bias: Tensor | None = None,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The formula, with the keys of a group written out for each of its heads, and powers divided by their sum."""
    groups = q.shape[1] // k.shape[1]
    k, v = (torch.stack([t[:, i // groups] for i in range(q.shape[1])], 1) for t in (k, v))
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    scores = scores if bias is None else scores + bias
    powers = scores.exp()
    if mask is not None:
        powers = powers * mask.materialize(q.shape[2], k.shape[2])
    total = powers.sum(-1, keepdim=True)
    total = total if sink is None else total + sink.exp()[:, None, None]
    return (powers / total.clamp(min=1e-300)) @ v


def compare(found: Tensor, true: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-9)
    slopes = (torch.autograd.grad(out.square().sum(), inputs, retain_graph=True) for out in (found, true))
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@every_mask
@pytest.mark.parametrize("softcap", [None, 1.7])
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("heads", [H, H // G])
def test_every_part_on_every_way(mask: Mask | None, softcap: float | None, sunk: bool, heads: int) -> None:
    q, k, v, sink = drawn((B, H, N, d), (B, heads, N, d), (B, heads, N, d), (H,))
    bound = None if mask is None else mask.bind(N, shape=(B, H))
    given: dict[str, Any] = {"sink": sink if sunk else None, "softcap": softcap}
    out = softmax_attention(q, k, v, bound, **given)
    compare(out, by_hand(q, k, v, mask, **given), [q, k, v, *([sink] if sunk else [])])


@pytest.mark.parametrize("queries", [1, 3, MAX_SHARED_QUERIES, MAX_SHARED_QUERIES + 1])
@pytest.mark.parametrize("mask", [None, causal(), causal() & sliding_window(7), padding(LENGTHS)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_few_queries_read_shared_keys_as_they_lie(queries: int, mask: Mask | None, biased: bool) -> None:
    q, k, v = drawn((B, H, queries, d), (B, H // G, M, d), (B, H // G, M, d))
    bias = torch.randn(H, queries, M, dtype=torch.float64) if biased else None
    with record_dispatch() as records:
        out = softmax_attention(q, k, v, None if mask is None else mask.bind(queries, M, shape=(B, H)), bias)
    assert (records[0].name == "shared") == (queries <= MAX_SHARED_QUERIES)
    compare(out, by_hand(q, k, v, mask, bias), [q, k, v])
    given = from_tensor(torch.rand(B, H, queries, M, generator=torch.Generator().manual_seed(5)) > 0.5)
    out = softmax_attention(q, k, v, given.bind(queries, M), bias)
    compare(out, by_hand(q, k, v, given, bias), [q, k, v])


def test_heads_of_keys_must_divide_those_of_queries() -> None:
    q, k, v = drawn((B, 6, 3, d), (B, 4, 3, d), (B, 4, 3, d))
    with pytest.raises(ValueError, match=r"key heads \(4\) must divide the number of query heads \(6\)"):
        softmax_attention(q, k, v)


@every_mask
@pytest.mark.parametrize("width", [w, 2 * d + 1])
def test_values_of_another_width(mask: Mask | None, width: int) -> None:
    q, k, v = drawn((B, H, N, d), (B, H, N, d), (B, H, N, width))
    out = softmax_attention(q, k, v, None if mask is None else mask.bind(N, shape=(B, H)))
    compare(out, by_hand(q, k, v, mask), [q, k, v])


def test_dropout_of_values_of_another_width_keeps_the_scale() -> None:
    q, k, v = drawn((B, H, N, d), (B, H, N, d), (B, H, N, 2 * d))
    torch.manual_seed(0)
    mean = torch.stack([softmax_attention(q, k, v, dropout=0.3).detach() for _ in range(200)]).mean(0)
    torch.testing.assert_close(mean, by_hand(q, k, v, None).detach(), rtol=0, atol=0.12)


# A sink


def test_both_ways_to_a_sink_agree() -> None:
    q, k, v, sink = drawn((B, H, 7, d), (B, H, 7, d), (B, H, 7, d), (H,))
    kernel = Kernel(0.3, sink)
    matrix = torch.randn(B, 1, 7, 7, dtype=torch.float64)
    for rule, triangle in ((None, False), (None, True), (matrix, False), (matrix > 0, False)):
        fused = kernel(q, k, v, rule, causal=triangle)
        compare(fused, kernel._with_a_key(q, k, v, sink, rule, triangle), [q, k, v, sink])


def test_a_sink_has_the_gradient_of_its_finite_differences() -> None:
    inputs = [t.detach()[:, :2, :3].requires_grad_() for t in drawn(*[(1, H, 5, d)] * 3)]
    sink = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v, s: Kernel(0.7, s)(q, k, v, causal=True), (*inputs, sink))


def test_a_learned_bias_and_a_sink_learn_together() -> None:
    q, k, v, sink, bias = drawn((B, H, N, d), (B, H, N, d), (B, H, N, d), (H,), (H, N, N))
    compare(softmax_attention(q, k, v, None, bias, sink=sink), by_hand(q, k, v, None, bias, sink), [q, sink, bias])


def test_a_sink_with_dropout_keeps_the_mean_and_its_gradient() -> None:
    q, k, v, sink = drawn((B, H, 31, d), (B, H, 31, d), (B, H, 31, d), (H,))
    torch.manual_seed(0)
    outs = torch.stack([softmax_attention(q, k, v, sink=sink, dropout=0.2) for _ in range(300)])
    torch.testing.assert_close(outs.mean(0), by_hand(q, k, v, None, sink=sink), rtol=0, atol=0.15)
    assert torch.autograd.grad(outs.sum(), sink)[0].abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sink_keeps_the_dtype(dtype: torch.dtype) -> None:
    exact = drawn((B, H, N, d), (B, H, N, d), (B, H, N, d), (H,))
    q, k, v, sink = (t.detach().to(dtype) for t in exact)
    out = softmax_attention(q, k, v, causal().bind(N), sink=sink)
    assert out.dtype == dtype
    close = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(out.double(), by_hand(*exact[:3], causal(), sink=exact[3]), rtol=0, atol=close)


# By rows


def test_rows_are_taken_a_few_at_a_time_where_the_map_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", B * H * 11 * (11 + 7))
    q, k, v = drawn((B, H, N, d), (B, H, N, d), (B, H, N, w))
    seen = []

    def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
        seen.append(scores.shape[2:])
        return masked_softmax(scores, permitted)

    with record_dispatch() as records:
        out = RowwiseMap(q, k, (causal() & sliding_window(7)).bind(N), None, normalize).apply(v)
    assert max(shape[0] for shape in seen) == 11
    assert max(shape[1] for shape in seen) == 11 + 6, "a row's keys are those that it can reach"
    assert "11 of 197 rows at a time" in str(records[0])
    compare(out, by_hand(q, k, v, causal() & sliding_window(7)), [q, k, v])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rule", [sliding_window(7), causal() & sliding_window(7) & padding(torch.tensor([500, 1031]))], ids=str
)
def test_a_narrow_mask_is_tiled_whatever_its_length(rule: Mask, dtype: torch.dtype) -> None:
    length, cells = 1031, []
    q, k, v = (t.to(dtype) for t in drawn((B, H, length, d), (B, H, length, d), (B, H, length, w)))

    def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
        cells.append(scores.numel())
        return masked_softmax(scores, permitted)

    RowwiseMap(q.detach(), k.detach(), rule.bind(length, shape=(B, H)), None, normalize).apply(v.detach())
    assert sum(cells) <= B * H * length * (64 + 13)
    assert max(cells) <= B * H * 64 * (64 + 13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_tiled_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", B * H * N * 7)
    q, k, v = (t.to(dtype) for t in drawn((B, H, N, d), (B, H, N, d), (B, H, N, w)))
    with record_dispatch() as records:
        RowwiseMap(q, k, None, None, masked_softmax).apply(v)
    assert "7 of 197 rows at a time" in str(records[0])


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**4)
    q, k, v = drawn((1, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 2))
    bound = (causal() & sliding_window(2)).bind(5)
    assert torch.autograd.gradgradcheck(
        lambda q, k, v: RowwiseMap(q, k, bound, None, masked_softmax).apply(v).tanh(), (q, k, v)
    )


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_any_number_of_rows_gives_the_same(queries: int, keys: int, size: int) -> None:
    q, k, v = drawn((1, 2, queries, d), (1, 2, keys, d), (1, 2, keys, w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2 * keys * size)
        out = RowwiseMap(q, k, None, None, masked_softmax).apply(v)
    torch.testing.assert_close(out, by_hand(q, k, v, None))


# The core


def test_a_core_streams_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = drawn((B, H, N, d), (B, H // G, N, d))
    core, largest = SoftmaxMap(q, k, (causal() & sliding_window(7)).bind(N, shape=(B, H))), []
    whole = core.materialize()
    plain = core._rows
    monkeypatch.setattr(core, "_rows", lambda rows: largest.append(len(rows)) or plain(rows))
    torch.testing.assert_close(torch.cat([part for _, part in core.stream(19)], 2), whole)
    assert largest == [19] * 10 + [7]


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (
            lambda core: core.materialize(rows=[N]),
            IndexError,
            f"row {N} is out of range; there are {N}, counted from 0",
        ),
        (lambda core: core.materialize(heads=[-7]), IndexError, "head -7 is out of range; there are 6"),
        (lambda core: core.materialize(rows=[0.5]), IndexError, "rows must be a list of integers"),
        (lambda core: core.pooled(0), ValueError, r"pooled\(blocks\) takes an integer of at least 1, not 0"),
        (lambda core: core.pooled(torch.zeros(3).long()), ValueError, rf"of shape \({N},\) or \(batch, {N}\)"),
    ],
)
def test_what_a_core_refuses(ask: Any, error: type[Exception], says: str) -> None:
    q, k = drawn((B, H, N, d), (B, H, N, d))
    with pytest.raises(error, match=says):
        ask(SoftmaxMap(q, k))


def test_pooled_by_size_and_by_name() -> None:
    q, k = drawn((B, H, N, d), (B, H, N, d))
    core = SoftmaxMap(q, k, causal().bind(N))
    sums = torch.stack([part.sum(-1) for part in core.materialize().split(50, -1)], -1)
    torch.testing.assert_close(core.pooled(50), sums)
    names = torch.stack([torch.arange(N) % 3, torch.arange(N) // 100])
    expected = torch.stack([core.materialize()[b][..., names[b] == 1].sum(-1) for b in range(B)])
    torch.testing.assert_close(core.pooled(names)[..., 1], expected)


def test_entropy_is_that_of_the_row() -> None:
    q = torch.zeros(1, 1, 5, d, dtype=torch.float64)
    found = SoftmaxMap(q, q, causal().bind(5)).entropy()
    torch.testing.assert_close(found[0, 0], torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64).log())
