"""Relative biases against their matrix, whole and in tiles; sparse backends never materialize the whole matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import assert_match, randn, reference
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab.masks import Mask, causal, from_cu_seqlens, padding, sliding_window
from attnlab.ops.bias import RelativeBias, cut, materialized
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import masked_softmax, softmax_attention

B, H = 2, 3


def relative(queries: int, keys: int, *, matrix: bool = False) -> RelativeBias:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(H, max(queries + keys - 1, 0), dtype=torch.float64, generator=generator)
    bias = RelativeBias(line, queries, keys)
    if matrix:
        bias = torch.randn(B, 1, queries, keys, dtype=torch.float64, generator=generator) + bias
    assert isinstance(bias, RelativeBias)
    return bias


def matrix_of(bias: RelativeBias) -> Tensor:
    """The matrix, element by element: the line starts at the largest distance back, queries are aligned at the end."""
    elements = [
        [bias.line[:, (j - (i + bias.keys - bias.queries)) + bias.keys - 1] for j in range(bias.keys)]
        for i in range(bias.queries)
    ]
    whole = torch.stack([torch.stack(row, -1) for row in elements], -2).unsqueeze(0)
    return whole if bias.matrix is None else whole + bias.matrix


@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_a_tile_is_a_part_of_the_matrix(data: Any, queries: int, keys: int, matrix: bool, compiling: bool) -> None:
    bias = relative(queries, keys, matrix=matrix)
    rows, columns = (slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in (queries, keys))
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, queries - 1), max_size=4)), dtype=torch.long)
    whole = matrix_of(bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: compiling)
        assert torch.equal(materialized(bias), whole)
        assert torch.equal(cut(bias, rows, columns), whole[..., rows, columns])
    assert torch.equal(cut(bias, chosen, slice(0, keys)), whole[..., chosen, :])


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 5), (5, 0)])
def test_empty_biases(queries: int, keys: int) -> None:
    assert relative(queries, keys).tensor().shape == (1, H, queries, keys)


def test_addition_broadcasts_any_shape() -> None:
    bias, whole = relative(5, 7), matrix_of(relative(5, 7))
    for shape in ((5, 7), (H, 1, 7), (B, H, 5, 1), ()):
        more = torch.randn(shape, dtype=torch.float64)
        for both in (bias + more, more + bias):
            assert isinstance(both, RelativeBias)
            torch.testing.assert_close(both.tensor(), whole + more, rtol=0, atol=0)
            torch.testing.assert_close((both + more).tensor(), whole + 2 * more)
            assert both.to(torch.float32).tensor().dtype == torch.float32


def test_gradients_sum_over_pairs_at_a_distance() -> None:
    bias = relative(5, 7)
    assert not bias.requires_grad
    bias.line.requires_grad_()
    assert bias.requires_grad
    assert (relative(5, 7) + torch.zeros(7, requires_grad=True)).requires_grad
    bias.tensor().sum().backward()
    assert bias.line.grad is not None
    assert bias.line.grad[1].tolist() == [1, 2, 3, 4, 5, 5, 5, 4, 3, 2, 1]


def test_a_line_of_another_length_is_refused() -> None:
    for line in (torch.zeros(H, 10), torch.zeros(11), torch.zeros(1, H, 11)):
        with pytest.raises(ValueError, match=r"must have shape \(heads, 11\) for 5 queries and 7 keys, not "):
            RelativeBias(line, 5, 7)


# In the backends

N, d = 293, 5


class NeverWhole(RelativeBias):
    """Fails if the whole matrix is materialized, and counts the elements of tiles."""

    elements = 0

    def tensor(self) -> Tensor:
        raise AssertionError("the whole matrix was materialized")

    def tile(self, queries: slice, keys: slice) -> Tensor:
        NeverWhole.elements += (queries.stop - queries.start) * (keys.stop - keys.start)
        return super().tile(queries, keys)


@pytest.mark.parametrize(
    ("backend", "mask", "most"),
    [
        ("window", causal() & sliding_window(11), N * (64 + 10)),
        ("items", causal() & padding(torch.tensor([203, 90])), N * (203 + 90)),
        ("segments", causal() & from_cu_seqlens(torch.tensor([0, 100, 131, N])), 100**2 + 31**2 + 162**2),
        ("rows", causal() & sliding_window(11), 2 * N * (5 + 10)),  # 5 rows at a time; recomputed in backward
    ],
)
def test_backends_materialize_only_tiles(backend: str, mask: Mask, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**9)  # 5 rows of 5 + 11 keys of 6 heads
    NeverWhole.elements = 0
    q, k, v, line = randn(*[(B, H, N, d)] * 3, (H, 2 * N - 1))
    bound, bias = mask.bind(N, shape=(B, H)), NeverWhole(line, N, N)
    with record_dispatch() as records:
        if backend == "rows":
            out = RowwiseMap(q, k, bound, bias, masked_softmax).apply(v)
        else:
            out = softmax_attention(q, k, v, bound, bias)
    assert [record.name for record in records] == [backend]
    assert_match(out, reference(q, k, v, mask, RelativeBias(line, N, N).tensor()), [q, k, v, line])
    assert 0 < NeverWhole.elements <= most
