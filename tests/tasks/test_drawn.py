"""The tasks with random examples, and options that do not fit a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnlab import tasks
from attnlab.network import Inputs
from attnlab.tasks.base import IGNORE, TaskConfig
from attnlab.tasks.induction import followers
from attnlab.tasks.multi_lookup import QUESTIONS, SYMBOLS, positions
from attnlab.tasks.recall import VOCABULARY, mqar
from attnlab.utils.errors import UserError

DRAWN = ["multi_lookup", "recall", "induction"]


@pytest.mark.parametrize("name", DRAWN)
def test_random_examples(name: str) -> None:
    one, same, other = (tasks.load(name).load(TaskConfig(seed=seed)) for seed in (3, 3, 4))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one, part).x, getattr(same, part).x)
        assert torch.equal(getattr(one, part).y, getattr(same, part).y)
        assert not torch.equal(getattr(one, part).x, getattr(other, part).x)
    trained = {row.tobytes() for row in one.train.x.numpy()}
    assert not any(row.tobytes() in trained for row in one.test.x.numpy())
    values = [b.values["accuracy"] for b in one.baselines()]
    assert 0.6 > values[0] > values[1] > 0


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


@pytest.mark.parametrize(
    ("name", "asked", "says"),
    [
        ("multi_lookup", {"seq_length": 8}, "from 9 to"),
        ("recall", {"seq_length": 31}, "even"),
        ("recall", {"seq_length": 4}, "from 8 to"),
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
