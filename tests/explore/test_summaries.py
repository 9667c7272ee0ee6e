"""Summaries against weights that were written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from explored import multihead, retention, stacked

from attnlab.explore import forward, summaries
from attnlab.explore.forward import LayerPass
from attnlab.explore.setup import Setup
from attnlab.ops.attention_map import DenseMap


def layer_of(*heads: list[list[float]], signed: bool = False) -> LayerPass:
    weights = torch.tensor(heads)
    N = weights.shape[1]
    layer = retention() if signed else multihead()
    return LayerPass(layer, torch.zeros(1, N, 12), None, torch.zeros(1, N, 12), DenseMap(weights[None]))


def test_entropy_distance_sums_and_peak() -> None:
    rows = [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]
    (head,) = summaries.summarize(layer_of(rows), tuple("abcd"))
    assert head.entropy == pytest.approx((0 + math.log(2) + math.log(4)) / 3)  # the empty row does not count
    assert head.distance == pytest.approx((0 + 0.5 + 1.5) / 3)
    assert head.row_sums == (0, 1)
    assert head.peak == 1
    assert head.sink == pytest.approx((0.5 + 0.25) / 2)  # queries 1 and 3


def test_weights_that_do_not_sum_to_one_are_summarized_by_their_shares() -> None:
    (head,) = summaries.summarize(layer_of([[0.2, 0.0], [0.1, 0.1]]), ("a", "b"))
    assert head.entropy == pytest.approx(math.log(2) / 2)
    assert head.row_sums == pytest.approx((0.2, 0.2))


def test_signed_weights_have_no_entropy_and_count_by_their_size() -> None:
    (head,) = summaries.summarize(layer_of([[1.0, 0], [-3.0, 1.0]], signed=True), ("a", "b"))
    assert head.entropy is None
    assert head.peak == 3
    assert head.row_sums == (-2, 1)
    assert head.distance == pytest.approx((0 + 0.75) / 2)
    assert head.tags["previous token"] == pytest.approx(0.75)


def test_tags() -> None:
    tokens = tuple("abcab")  # queries 3 and 4 occurred before, followed by keys 1 and 2
    previous = torch.zeros(5, 5)
    previous[range(1, 5), range(4)] = 1
    previous[0, 0] = 1
    induction = torch.eye(5)
    induction[3] = torch.tensor([0, 1.0, 0, 0, 0])
    induction[4] = torch.tensor([0, 0, 0.5, 0, 0.5])
    heads = summaries.summarize(layer_of(previous.tolist(), induction.tolist()), tokens)
    assert heads[0].tags["previous token"] == 1
    assert heads[0].tags["induction"] == 0
    assert heads[0].tags["same token"] == 0
    assert heads[1].tags["induction"] == pytest.approx(0.75)
    assert heads[1].tags["same position"] == pytest.approx((1 + 1 + 1 + 0 + 0.5) / 5)


def test_a_pattern_that_no_query_can_show_has_no_score() -> None:
    (head,) = summaries.summarize(layer_of([[1.0, 0], [0.5, 0.5]]), ("a", "b"))
    assert "induction" not in head.tags
    assert "same token" not in head.tags


def test_summaries_do_not_depend_on_how_many_queries_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = forward.run(stacked(multihead()), Setup()).layers[0]
    tokens = tuple("abcdeabcdea")
    at_once = summaries.summarize(layer, tokens)
    monkeypatch.setattr(summaries, "CHUNK_VALUES", 1)
    for one, other in zip(at_once, summaries.summarize(layer, tokens), strict=True):
        assert one.entropy == pytest.approx(other.entropy)
        assert one.tags == pytest.approx(other.tags)


def test_long_inputs_are_summarized_by_some_of_their_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_DETAIL", 5)
    monkeypatch.setattr(summaries, "MAX_QUERIES", 3)
    layer = forward.run(stacked(multihead()), Setup()).layers[0]
    expected = layer.weights(torch.tensor([0, 5, 10])).amax((1, 2))
    heads = summaries.summarize(layer, tuple("abcdeabcdea"))
    assert [head.peak for head in heads] == pytest.approx(expected.tolist())


def test_hidden_tokens_do_not_count() -> None:
    rows = [[0.0] * 4, [0, 1.0, 0, 0], [0, 0.75, 0.25, 0], [0.0] * 4]
    layer = layer_of(rows)
    layer.shown = torch.tensor([False, True, True, False])
    (head,) = summaries.summarize(layer, ("[CLS]", "a", "b", "[SEP]"))
    assert head.row_sums == (1, 1)
    assert head.sink == pytest.approx(0.75)  # on the first token that is shown
    assert head.tags["previous token"] == pytest.approx(0.75)
    assert head.distance == pytest.approx(0.75 / 2)
