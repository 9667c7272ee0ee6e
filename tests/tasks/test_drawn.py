"""The tasks with random examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attnlab import tasks
from attnlab.tasks.base import IGNORE, TaskConfig
from attnlab.tasks.induction import followers
from attnlab.tasks.multi_lookup import QUESTIONS, SYMBOLS, positions
from attnlab.tasks.recall import VOCABULARY, mqar
from attnlab.utils.errors import UserError

DRAWN = ["multi_lookup", "recall", "induction"]


@pytest.mark.parametrize("name", DRAWN)
def test_the_seed_decides_everything(name: str) -> None:
    one, same, other = (tasks.load(name).load(TaskConfig(seed=seed)) for seed in (3, 3, 4))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one, part).x, getattr(same, part).x)
        assert torch.equal(getattr(one, part).y, getattr(same, part).y)
        assert not torch.equal(getattr(one, part).x, getattr(other, part).x)


@pytest.mark.parametrize("name", DRAWN)
def test_test_sequences_are_not_in_the_training_data(name: str) -> None:
    task_data = tasks.load(name).load(TaskConfig())
    trained = {row.tobytes() for row in task_data.train.x.numpy()}
    assert not any(row.tobytes() in trained for row in task_data.test.x.numpy())


@pytest.mark.parametrize("name", DRAWN)
def test_ranking_by_accuracy(name: str) -> None:
    values = [b.values["accuracy"] for b in tasks.load(name).load(TaskConfig()).baselines()]
    assert all(0 < value < 0.6 for value in values)
    assert values == sorted(values, reverse=True)


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
    ("name", "request_", "says"),
    [
        ("multi_lookup", TaskConfig(seq_length=8), "from 9 to"),
        ("recall", TaskConfig(seq_length=31), "even"),
        ("recall", TaskConfig(seq_length=4), "from 8 to"),
        ("induction", TaskConfig(seq_length=3), "from 4 to"),
        ("induction", TaskConfig(target="price"), "no columns"),
        ("digits", TaskConfig(seq_length=4), "--seq_length 4"),
    ],
)
def test_mismatched_inputs_are_refused(name: str, request_: TaskConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        tasks.load(name).load(request_)
