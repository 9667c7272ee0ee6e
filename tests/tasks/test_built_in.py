"""The tasks with data of their own, and options that do not fit a task."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import parts, row_bytes

from attnlab import tasks
from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import IGNORE, Split, TaskConfig, TaskData
from attnlab.tasks.induction import followers
from attnlab.tasks.multi_lookup import QUESTIONS, SYMBOLS, positions
from attnlab.tasks.recall import VOCABULARY, mqar
from attnlab.utils.errors import UserError

DRAWN = ["multi_lookup", "recall", "induction"]


@pytest.mark.parametrize("name", DRAWN)
def test_random_examples(name: str) -> None:
    one, same, other = (tasks.load(name).load(TaskConfig(seed=seed)) for seed in (3, 3, 4))
    for first, second, third in zip(*map(parts, (one, same, other)), strict=True):
        assert torch.equal(first.x, second.x)
        assert torch.equal(first.y, second.y)
        assert not torch.equal(first.x, third.x)
    assert row_bytes(one.train).isdisjoint(row_bytes(one.test))
    values = [b.values["accuracy"] for b in one.baselines()]
    assert 0.6 > values[0] > values[1] > 0


@pytest.mark.parametrize("name", [*DRAWN, "text"])
def test_length_of_the_test_data(name: str, tmp_path: Path) -> None:
    """Only the test data become longer, and a network gets the positions that they need."""
    (tmp_path / "x.txt").write_bytes(bytes(range(32, 127)) * 11)
    data = tmp_path / "x.txt" if name == "text" else None
    usual, longer, shorter = (
        tasks.load(name).load(TaskConfig(seed=5, data=data, seq_length=46, test_length=length))
        for length in (None, 94, 38)
    )
    for part, other in zip(parts(usual)[:2] * 2, [*parts(longer)[:2], *parts(shorter)[:2]], strict=True):
        assert torch.equal(part.x, other.x)
        assert torch.equal(part.y, other.y)
    assert [each.test.x.shape[1] for each in (usual, longer, shorter)] == [46, 94, 38]
    assert [each.length for each in (usual, longer, shorter)] == [46, 94, 46]


def test_pairs_and_vocabulary_of_recall() -> None:
    task_data = tasks.load("recall").load(TaskConfig(seq_length=46, test_length=94, pairs=3, vocabulary=23))
    assert task_data.inputs.size == task_data.outputs.size == 23
    for part in parts(task_data):
        assert part.x.max() == 22
        assert set(((part.y != IGNORE).sum(1)).tolist()) == {3}
        assert set(part.x[:, 0:6:2].unique().tolist()) == set(range(1, 11))
    assert [b.values["accuracy"] for b in task_data.baselines()] == [1 / 3, 1 / 11]


def test_multi_lookup_targets() -> None:
    task_data = tasks.load("multi_lookup").load(TaskConfig())
    x, y = task_data.test.x, task_data.test.y
    assert set(x[:, -1].tolist()) == set(range(SYMBOLS, SYMBOLS + QUESTIONS))
    assert x[:, :-1].max() == SYMBOLS - 1
    for row, answer in zip(x[:50].tolist(), y[:50].tolist(), strict=True):
        question = row[-1] - SYMBOLS
        assert answer == [row[(4 * question + 5 * k) % 20] for k in range(4)]


@pytest.mark.parametrize("N", [9, 13, 24, 47])
def test_positions_of_a_question(N: int) -> None:
    for asked in positions(N).tolist():
        assert len(set(asked)) == 4
        assert max(asked) < N - 1


def test_every_key_is_queried_once() -> None:
    N, pairs = 64, 7
    x, y = mqar(np.random.default_rng(0), 53, N, pairs)
    for row, answers in zip(x, y, strict=True):
        value = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        asked = np.flatnonzero(answers != IGNORE)
        assert len(value) == len(asked) == pairs
        assert asked.min() >= 2 * pairs
        assert sorted(row[asked]) == sorted(value)
        assert [value[key] for key in row[asked]] == answers[asked].tolist()
        assert max(value) < VOCABULARY // 2 <= min(value.values())


def test_short_distances_are_more_frequent() -> None:
    _, y = mqar(np.random.default_rng(0), 500, 64, 4)
    asked = (y != IGNORE).sum(0)
    assert asked[8:16].sum() > 2 * asked[48:64].sum()


def test_followers_by_hand() -> None:
    _ = IGNORE
    x = np.array([[2, 0, 5, 1, 0, 3, 5, 0, 2]])  # c a f b a d f a c
    assert followers(x).tolist() == [[_, _, _, _, 5, _, 1, 3, 0]]


def test_digits(tmp_path: Path) -> None:
    task = tasks.load("digits")
    task_data = task.load(TaskConfig())
    assert sum(len(part.x) for part in parts(task_data)) == 1797
    assert len(set.union(*map(row_bytes, parts(task_data)))) == 1797
    assert task_data.train.x.shape[1:] == (8, 8)
    assert (task_data.train.x.min(), task_data.train.x.max()) == (0, 1)
    for part in parts(task_data):
        share = part.y.flatten().bincount()
        assert (share / share.sum() - 0.1).abs().max() < 0.015
    neighbours, regression, majority = (b.values["accuracy"] for b in task_data.baselines())
    assert neighbours > 0.96
    assert 0.93 < regression < 0.99
    assert majority == pytest.approx(0.1, abs=0.01)
    for pixel, refusal in ((0.5, contextlib.nullcontext()), (16.0, pytest.raises(UserError, match="pixels from 0 "))):
        np.savez(tmp_path / "x.npz", x=np.full((3, 8, 8), pixel))
        with refusal:
            assert task.read(tmp_path / "x.npz", task_data.inputs, 8, {}).x.dtype == torch.float32


def test_wrong_target_shape_is_refused() -> None:
    flat = Split(torch.zeros(3, 8, 8), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="of kind classes need"):
        TaskData(flat, flat, flat, Inputs("vectors", 8), Outputs("classes", 10), 8, "accuracy")


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("multi_lookup", {"seq_length": 8}, "from 9 to"),
        ("recall", {"seq_length": 31}, "even"),
        ("recall", {"seq_length": 2}, "--seq_length for recall must be from 4 to"),
        ("recall", {"test_length": 31}, "--test_length for recall must be even, not 31"),
        ("recall", {"seq_length": 22, "pairs": 6}, "6 pairs needs sequences of at least 24 tokens, four for each, not"),
        ("recall", {"test_length": 30}, "8 pairs needs sequences of at least 32 tokens, four for each, not 30"),
        ("recall", {"seq_length": 512}, "64 pairs needs a vocabulary of at least 130, with a key and a value for each"),
        ("induction", {"noise": 0.5}, "induction has no noise to set; leave out --noise 0.5"),
        ("induction", {"test_length": 3}, "--test_length for induction must be from 4 to"),
        ("induction", {"pairs": 3}, "induction has no key-value pairs to choose the number of; leave out --pairs 3"),
        ("digits", {"test_length": 16}, "digits has no test data of another length; leave out --test_length 16"),
        ("digits", {"vocabulary": 5}, "the symbols of digits are fixed; leave out --vocabulary 5"),
        ("induction", {"seq_length": 3}, "from 4 to"),
        ("induction", {"target": "price"}, "no columns, so --target price"),
        ("text", {"features": ("a", "b")}, "text has no columns, so --features a b has no effect"),
        ("text", {"header": False}, "text has no columns, so --no_header has no effect"),
        ("digits", {"seq_length": 4}, "--seq_length 4"),
        ("digits", {"split_by": "lines"}, "--split_by lines is for text, which digits is not"),
        ("table", {}, "needs your own file: give --data"),
        ("arrays", {}, "needs your own file: give --data"),
    ],
)
def test_mismatched_options_are_refused(name: str, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tasks.load(name).load(TaskConfig(**asked))


def test_evaluation_needs_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 5), int))
    with pytest.raises(UserError, match=r"x\.npz lacks the target y"):
        tasks.load("multi_lookup").read_labelled(tmp_path / "x.npz", Inputs("tokens", 3), 7, {})
