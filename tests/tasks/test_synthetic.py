"""The tasks with random examples: an independent solver computes every target from the input alone."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import parts

from attnlab import tasks
from attnlab.tasks import _synthetic
from attnlab.tasks._synthetic import compacted, most_common, most_common_so_far
from attnlab.tasks.base import IGNORE, Split, TaskConfig, TaskData
from attnlab.training import settings as training_settings
from attnlab.training.experiment import build, load_task_data
from attnlab.utils.errors import UserError

Row = list[int]


def written(rule: Callable[[Row], Row]) -> Callable[[Row], Row]:
    """A solver of copy, reverse or sort."""

    def solve(x: Row) -> Row:
        n = len(x) // 2
        assert x[n] == max(x), "the separator"
        assert x[n + 1 :] == rule(x[:n])[:-1], "the outputs so far"
        return [IGNORE] * n + rule(x[:n])

    return solve


def selective_copying(x: Row) -> Row:
    marker = x[-1]
    symbols = [token for token in x if token < marker - 1]
    assert x[-len(symbols) :] == [marker] * len(symbols)
    return [IGNORE] * (len(x) - len(symbols)) + symbols


def needle(x: Row) -> Row:
    assert x.count(x[-1]) == 2
    return [x[x.index(x[-1]) + 1]]


def listops(x: Row) -> Row:
    """The value of the expression, which Python evaluates."""
    words = ["MIN(", "MAX(", "MED(", "SM(", ")", ""]
    text = " ".join(f"{token}," if token < 10 else words[token - 10] for token in x).replace(")", "),")
    functions = {"MIN": min, "MAX": max, "MED": statistics.median, "SM": sum}

    def value(node: Any) -> int:
        if isinstance(node, ast.Constant):
            return node.value
        assert 2 <= len(node.args) <= 3
        arguments = list(map(value, node.args))
        result = functions[node.func.id](arguments)
        return int(result) % 10 if node.func.id == "SM" else int(result)

    return [value(ast.parse(text.strip().rstrip(","), mode="eval").body)]


def noisy_recall(x: Row) -> Row:
    """With the default vocabulary: keys below 8, values below 16."""
    known: dict[int, int] = {}
    y = [IGNORE] * len(x)
    for i in range(0, len(x), 2):
        assert (x[i] < 8 <= x[i + 1] < 16) or min(x[i : i + 2]) >= 16
        if x[i] < 8:
            y[i] = known.get(x[i], IGNORE)
            assert known.setdefault(x[i], x[i + 1]) == x[i + 1]
    return y


def fuzzy_recall(x: Row) -> Row:
    """With the default vocabulary: keys below 8, values below 16."""
    known: dict[tuple[int, ...], Row] = {}
    y = [IGNORE] * len(x)
    i = next(i for i, token in enumerate(x) if token < 16)
    while i < len(x):
        end = next(j for j in range(i, len(x)) if x[j] >= 8)
        after = next((j for j in range(end, len(x)) if x[j] < 8), len(x))
        key, value = tuple(x[i:end]), x[end:after]
        assert 1 <= len(key) <= 3
        assert 1 <= len(value) <= 3
        if key in known:
            assert known[key] == value
            y[end - 1 : after - 1] = value
        known[key] = value
        i = after
    return y


SOLVERS: dict[str, Callable[[Row], Row]] = {
    "copy": written(lambda symbols: symbols),
    "reverse": written(lambda symbols: symbols[::-1]),
    "sort": written(sorted),
    "selective_copying": selective_copying,
    "needle": needle,
    "listops": listops,
    "noisy_recall": noisy_recall,
    "fuzzy_recall": fuzzy_recall,
    "compression": lambda x: x[:-1],
}
WITH_TEST_LENGTH = [name for name in SOLVERS if name != "compression"]


@pytest.fixture(autouse=True, scope="module")
def few_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_synthetic, "TRAIN", 331)
        patch.setattr(_synthetic, "TEST", 127)
        yield


def load(name: str, **options: Any) -> TaskData:
    return tasks.load(name).load(TaskConfig(**options))


def solve(name: str, split: Split) -> list[Row]:
    return [SOLVERS[name](row) for row in split.x.tolist()]


@pytest.mark.parametrize("name", SOLVERS)
def test_targets(name: str) -> None:
    task_data = load(name, seed=3)
    for part in parts(task_data):
        assert solve(name, part) == part.y.tolist()
        assert part.x.max() < task_data.inputs.size
        assert part.y.max() < task_data.outputs.size


@pytest.mark.parametrize("name", WITH_TEST_LENGTH)
@given(length=st.integers(8, 22), longer=st.integers(8, 40), seed=st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_targets_at_any_length(name: str, length: int, longer: int, seed: int) -> None:
    """Also that the training data do not depend on the length of the test data."""
    config = TaskConfig(seed=seed, seq_length=2 * length, test_length=2 * longer)
    if name == "selective_copying" and longer < length:
        config = TaskConfig(seed=seed, seq_length=2 * length)
    task_data = tasks.load(name).load(config)
    assert solve(name, task_data.test) == task_data.test.y.tolist()
    assert task_data.test.x.shape[1] == (config.test_length or 2 * length)
    assert task_data.length == max(task_data.test.x.shape[1], 2 * length)
    alone = load(name, seed=seed, seq_length=2 * length)
    assert torch.equal(alone.train.x, task_data.train.x)
    assert torch.equal(alone.validation.y, task_data.validation.y)


@pytest.mark.parametrize("name", SOLVERS)
def test_seeds_draw_other_examples(name: str) -> None:
    assert tasks.entry(name).fresh_data
    one, same, other = (load(name, seed=seed) for seed in (3, 3, 4))
    for first, second, third in zip(*map(parts, (one, same, other)), strict=True):
        assert torch.equal(first.x, second.x)
        assert not torch.equal(first.x, third.x)


@pytest.mark.parametrize("model", ["linear", "mamba2"])
@pytest.mark.parametrize("name", [*SOLVERS, "modular_addition", "few_shot"])
def test_other_mechanisms_can_be_trained(name: str, model: str) -> None:
    defaults = training_settings.defaults(model, name)
    task_data = load(name)
    out = build(defaults, task_data)(task_data.test.x[:3])
    assert out.shape == (*task_data.test.y[:3].shape, task_data.outputs.size)


@pytest.mark.parametrize("name", SOLVERS)
def test_chance(name: str) -> None:
    """Each target has the stated frequency, and no baseline is below it or near a solution."""
    task_data = load(name, seed=5)
    values = {baseline.name: baseline.values["accuracy"] for baseline in task_data.baselines()}
    assert list(values)[-1] == "chance"
    assert values["chance"] == min(values.values())
    assert max(values.values()) < tasks.entry(name).threshold - 0.2
    y = task_data.train.y[task_data.train.y != IGNORE]
    if name != "listops":  # a minimum is more often 0 than 9
        share = y.bincount(minlength=task_data.outputs.size).double() / len(y)
        share = share[share > 0]
        assert 1 / len(share) == pytest.approx(values["chance"])
        assert (share - values["chance"]).abs().max() < 5 * (values["chance"] / len(y)) ** 0.5


def test_fraction_of_noise() -> None:
    x = load("noisy_recall", noise=0.6, seq_length=202).train.x
    assert (x >= 16).double().mean() == pytest.approx(0.6 * 99 / 101, abs=0.02)
    assert (load("noisy_recall", noise=0.0).train.x < 16).all()
    x = load("selective_copying", noise=0.9, seq_length=88, vocabulary=5).train.x
    assert (x < 5).sum(1).unique().tolist() == [8]  # 80 tokens, a tenth of which are symbols, and 8 markers
    assert (x == 5).sum(1).unique().tolist() == [72]


def test_number_of_pairs() -> None:
    x = load("noisy_recall", pairs=3, seq_length=202).train.x
    assert {len(set(row[row < 8].tolist())) for row in x} == {3}
    x = load("fuzzy_recall", pairs=2, seq_length=90).train.x.tolist()
    assert max(len(set(fuzzy_keys(row))) for row in x) == 2


@pytest.mark.parametrize("name", ["noisy_recall", "fuzzy_recall"])
def test_last_key_is_repeated(name: str) -> None:
    """So that every sequence has a target, however short it is."""
    y = load(name, seq_length=12).train.y
    assert (y != IGNORE).any(1).all()


def test_settings_reach_the_task() -> None:
    options = {"pairs": 3, "vocabulary": 23, "noise": 0.9, "seq_length": 50, "test_length": 70}
    changed = training_settings.defaults("multihead", "noisy_recall").updated(options, "the test")
    task_data = load_task_data(changed)
    assert task_data.summary_lines == (
        "3 pairs out of 11 keys and 12 values; 50 tokens, 90% of them noise; 70 tokens in the test data",
    )
    assert [part.x.shape[1] for part in parts(task_data)] == [50, 50, 70]
    assert (task_data.train.x >= 23).double().mean() > 0.8


def fuzzy_keys(x: Row) -> list[str]:
    return "".join(chr(97 + token) if token < 8 else " " for token in x).split()


def test_every_sum_is_in_one_part() -> None:
    task_data = load("modular_addition", vocabulary=13, seed=2)
    for part in parts(task_data):
        for (a, b, end), (answer,) in zip(part.x.tolist(), part.y.tolist(), strict=True):
            assert (end, answer) == (13, (a + b) % 13)
    pairs = [{frozenset(row[:2]) for row in part.x.tolist()} for part in parts(task_data)]
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 13 * 14 // 2
    assert sum(len(part.x) for part in parts(task_data)) == 169
    assert not torch.equal(load("modular_addition", vocabulary=13, seed=1).test.x, task_data.test.x)


def test_depth_of_expressions() -> None:
    depths = Counter()
    for row in load("listops", seq_length=40).train.x.tolist():
        depth = deepest = 0
        for token in row:
            depth += (10 <= token < 14) - (token == 14)
            deepest = max(deepest, depth)
        depths[deepest] += 1
    assert set(depths) == {1, 2, 3}
    assert min(depths.values()) > 3


def test_helpers_by_hand() -> None:
    assert compacted(np.array([[5, -1, 6, -1], [-1, 7, 8, 9]]), 3, 0).tolist() == [[0, 5, 6], [7, 8, 9]]
    assert compacted(np.array([[-1, 4]]), 3, 9).tolist() == [[9, 9, 4]]
    split = Split(torch.tensor([[1, 1, 0, 3], [2, 0, 2, 3]]), torch.tensor([[IGNORE, 1, 1, 0], [IGNORE, 2, 0, 2]]))
    assert most_common(split, 3) == pytest.approx(4 / 6)  # 1 and 2, in place of 1 1 0 and 2 0 2
    assert most_common_so_far(split, 0, 3) == pytest.approx(3 / 6)  # 1 1 1 and 0 2 2, since the first of equals counts


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy", {"seq_length": 7}, "--seq_length for copy must be even, not 7: there are as many outputs as symbols"),
        ("sort", {"test_length": 3}, "--test_length for sort must be from 4 to 100,000, not 3"),
        ("reverse", {"pairs": 3}, "reverse has no key-value pairs to choose the number of; leave out --pairs 3"),
        ("needle", {"noise": 0.5}, "needle has no noise to set; leave out --noise 0.5"),
        (
            "selective_copying",
            {"noise": 0.0, "test_length": 20},
            "20 symbols, which need sequences of at least 40",
        ),
        (
            "modular_addition",
            {"vocabulary": 4},
            "--vocabulary for modular_addition, the modulus, must be from 5 to",
        ),
        ("modular_addition", {"seq_length": 4}, "the data of modular_addition determine the sequence length"),
        ("listops", {"vocabulary": 4}, "the symbols of listops are fixed; leave out --vocabulary 4"),
        (
            "compression",
            {"test_length": 9},
            "compression has no test data of another length; leave out --test",
        ),
        ("noisy_recall", {"pairs": 9}, "noisy_recall with 9 pairs needs a vocabulary of at least 18, with a key and"),
        ("fuzzy_recall", {"vocabulary": 5, "pairs": 3}, "fuzzy_recall with 3 pairs needs a vocabulary of at least 6"),
        ("fuzzy_recall", {"seq_length": 11}, "--seq_length for fuzzy_recall must be from 12 to 100,000, not 11"),
        ("few_shot", {"pairs": 11}, "--pairs for few_shot must be from 2 to 10, one for each digit, not 11"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        load(name, **options)
