"""Programs of given and computed lines, and the maps that explain nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlab.masks import from_tensor, sliding_window
from attnlab.ops.arithmetic import Arithmetic, sigmoid
from attnlab.ops.attention_map import DenseMap
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import SoftmaxMap

B, H, N, M, d = 2, 3, 5, 7, 4


def test_lines_are_python_over_earlier_names() -> None:
    a = Arithmetic()
    x = a.given("x", torch.tensor([1.0, -math.inf, math.nan]), "numbers")
    part = a.part("_1")
    y = part.compute("y", f"max({x})", "the largest")
    a.compute("z", f"math.exp({y})", "its exponential")
    assert [line.name for line in a.lines] == ["x", "y_1", "z"]
    assert [line.code for line in a.lines] == ["[1.0, -math.inf, math.nan]", "max(x)", "math.exp(y_1)"]
    assert (a.last, a.result) == ("z", math.e)
    assert a.python().splitlines()[:4] == ["import math", "", "# numbers", "x = [1.0, -math.inf, math.nan]"]
    with pytest.raises(ValueError, match="two lines named y_1"):
        part.compute("y", "0.0", "again")


@pytest.mark.parametrize("x", [-1000.0, -3.0, 0.0, 1000.0])
def test_the_sigmoid_does_not_overflow(x: float) -> None:
    a = Arithmetic()
    sigmoid(a, "y", a.given("x", x, ""), "")
    assert a.result == pytest.approx(torch.tensor(x).double().sigmoid().item())


def queries_and_keys() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, H, N, d, generator=generator), torch.randn(B, H, M, d, generator=generator)


def test_a_mechanism_without_lines_shows_its_scores_and_its_weight() -> None:
    def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
        weights = scores.square()
        return weights if permitted is None else weights * permitted

    q, k = queries_and_keys()
    weights = RowwiseMap(q, k, sliding_window(3).bind(N, M), None, normalize, score_fn=lambda q, k: 2 * q @ k.mT)
    shown = weights.arithmetic(1, 2, 5, batch=1)
    assert [line.name for line in shown.lines] == ["scored", "weight"]
    assert shown.lines[0].value == pytest.approx((2 * q[1, 1, 2] @ k[1, 1, 5]).item())
    assert shown.result == pytest.approx(weights.materialize()[1, 1, 2, 5].item())
    masked = weights.arithmetic(1, 0, 6)
    assert [line.name for line in masked.lines] == ["scored", "weight"]
    assert masked.result == 0.0
    dense = DenseMap(weights.materialize()).arithmetic(2, 4, 6, batch=1)
    assert dense.result == weights.materialize()[1, 2, 4, 6].item()


def test_a_masked_key_and_a_fully_masked_row_are_named() -> None:
    q, k = queries_and_keys()
    rows = (torch.arange(N) != 1).unsqueeze(-1).expand(N, M)
    weights = SoftmaxMap(q, k, sliding_window(3).bind(N, M))
    assert weights.arithmetic(0, 0, 6).lines[-1].meaning.startswith("the mask does not allow this key")
    fully = SoftmaxMap(q, k, from_tensor(rows).bind(N, M))
    assert "no key of this row is allowed" in fully.arithmetic(0, 1, 3).lines[-1].meaning
    assert fully.arithmetic(0, 1, 3).result == 0.0
    assert "2 of the 7 keys are left out" in weights_line(weights.arithmetic(0, 2, 4))


def weights_line(a: Arithmetic) -> str:
    return next(line.meaning for line in a.lines if line.name == "others")


@pytest.mark.parametrize("place", [(H, 0, 0, 0), (0, N, 0, 0), (0, 0, M, 0), (0, 0, 0, B), (-1, 0, 0, 0)])
def test_places_out_of_range_are_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(IndexError, match=r"(head|query|key|batch) -?\d is out of range; there are \d"):
        SoftmaxMap(*queries_and_keys()).arithmetic(*place)


@pytest.mark.parametrize("size", [90.0, 2000.0])
def test_extreme_scores_do_not_overflow(size: float) -> None:
    q, k = queries_and_keys()
    weights = SoftmaxMap(size * q, size * k)
    matrix = weights.materialize()
    for key in range(M):
        assert weights.arithmetic(0, 0, key).result == pytest.approx(matrix[0, 0, 0, key].item(), abs=1e-2)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_softmax_with_any_options(data: st.DataObject) -> None:
    heads, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    queries, keys, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 90)), data.draw(st.integers(1, 5))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    optional = {
        "mask": from_tensor(torch.rand(queries, keys) < 0.7).bind(queries, keys),
        "bias": torch.randn(heads * groups, queries, keys),
        "scale": 0.3,
        "sink": torch.randn(heads * groups),
        "softcap": 1.5,
    }
    chosen = {name: value for name, value in optional.items() if data.draw(st.booleans())}
    q, k = torch.randn(1, heads * groups, queries, width), torch.randn(1, heads, keys, width)
    weights = SoftmaxMap(q, k, **chosen)
    head, query, key = (data.draw(st.integers(0, count - 1)) for count in (heads * groups, queries, keys))
    expected = weights.materialize()[0, head, query, key].item()
    assert weights.arithmetic(head, query, key).result == pytest.approx(expected, abs=1e-6)
