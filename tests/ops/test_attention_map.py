"""Lazy attention weights: row by row, streamed, pooled and selected. Sizes are primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_match, randn, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlab.masks import Mask, causal, padding, sliding_window
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import SoftmaxMap, masked_softmax

B, H, G, N, d, w = 2, 6, 3, 197, 5, 3
WINDOW = causal() & sliding_window(7)


def tensors(length: int = N, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return randn((B, H, length, d), (B, H, length, d), (B, H, length, w), dtype=dtype)


class Shapes:
    """The softmax, which remembers the shapes of its scores."""

    def __init__(self) -> None:
        self.seen: list[torch.Size] = []

    def __call__(self, scores: Tensor, permitted: Tensor | None) -> Tensor:
        self.seen.append(scores.shape)
        return masked_softmax(scores, permitted)


def test_large_matrices_are_computed_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", B * H * 11 * (11 + 7))
    (q, k, v), shapes = tensors(), Shapes()
    with record_dispatch() as records:
        out = RowwiseMap(q, k, WINDOW.bind(N), None, shapes).apply(v)
    assert max(shape[2] for shape in shapes.seen) == 11
    assert max(shape[3] for shape in shapes.seen) == 11 + 6, "a tile has only the keys that its rows attend to"
    assert "11 of 197 rows at a time" in str(records[0])
    assert_match(out, reference(q, k, v, WINDOW), [q, k, v])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [sliding_window(7), WINDOW & padding(torch.tensor([500, 1031]))], ids=str)
def test_a_narrow_mask_is_tiled_whatever_its_length_and_dtype(rule: Mask, dtype: torch.dtype) -> None:
    (q, k, v), shapes = (t.detach() for t in tensors(1031, dtype)), Shapes()
    RowwiseMap(q, k, rule.bind(1031, shape=(B, H)), None, shapes).apply(v)
    assert sum(shape.numel() for shape in shapes.seen) <= B * H * 1031 * (64 + 13)
    assert max(shape.numel() for shape in shapes.seen) <= B * H * 64 * (64 + 13)


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**4)
    bound = (causal() & sliding_window(2)).bind(5)
    assert torch.autograd.gradgradcheck(
        lambda q, k, v: RowwiseMap(q, k, bound, None, masked_softmax).apply(v).tanh(),
        randn((1, 2, 5, 3), (1, 2, 5, 3), (1, 2, 5, 2)),
        fast_mode=True,
    )


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_any_tile_size_matches(queries: int, keys: int, size: int) -> None:
    q, k, v = randn((1, 2, queries, d), (1, 2, keys, d), (1, 2, keys, w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2 * keys * size)
        out = RowwiseMap(q, k, None, None, masked_softmax).apply(v)
    torch.testing.assert_close(out, reference(q, k, v, None))


def test_stream_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = randn((B, H, N, d), (B, H // G, N, d))
    weights, rows_at_a_time = SoftmaxMap(q, k, WINDOW.bind(N, shape=(B, H))), []
    whole, original = weights.materialize(), weights._rows
    monkeypatch.setattr(weights, "_rows", lambda rows: rows_at_a_time.append(len(rows)) or original(rows))
    torch.testing.assert_close(torch.cat([part for _, part in weights.stream(19)], 2), whole)
    assert rows_at_a_time == [19] * 10 + [7]


def test_pooled_by_size_and_by_index() -> None:
    q, k, _ = tensors()
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


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("materialize", {"rows": [N]}, IndexError, f"row {N} is out of range; there are {N}, counted from 0"),
        ("materialize", {"heads": [-7]}, IndexError, "head -7 is out of range; there are 6"),
        ("materialize", {"rows": [0.5]}, IndexError, "rows must be a list of integers"),
        ("pooled", {"blocks": 0}, ValueError, r"pooled\(blocks\) takes an integer of at least 1, not 0"),
        ("pooled", {"blocks": torch.zeros(3).long()}, ValueError, rf"of shape \({N},\) or \(batch, {N}\)"),
    ],
)
def test_invalid_selections_are_refused(method: str, argument: Any, error: type[Exception], message: str) -> None:
    q, k, _ = tensors()
    with pytest.raises(error, match=message):
        getattr(SoftmaxMap(q, k), method)(**argument)
