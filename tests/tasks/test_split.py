"""Splits keep equal rows together and every class in each part; samples keep every class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_data import arrays, csv, parts, row_bytes, table

from attnlab.tasks._split import Parts, groups_of_equal_rows, sample, shuffled, stratified
from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError


def check(split: Parts, count: int, groups: np.ndarray) -> None:
    assert sorted(np.concatenate(split)) == list(range(count))
    assert all(len(part) and (np.diff(part) > 0).all() for part in split)
    together = [set(groups[part]) for part in split]
    assert sum(map(len, together)) == len(set.union(*together))


@given(st.lists(st.integers(0, 12), min_size=10, max_size=97), st.integers(0, 5), st.sampled_from([0.001, 0.1, 0.9]))
def test_groups_stay_together(numbers: list[int], seed: int, val_fraction: float) -> None:
    groups = groups_of_equal_rows(np.array(numbers)[:, None])
    config = TaskConfig(seed=seed, val_fraction=val_fraction)
    if len(set(numbers)) < 3:
        with pytest.raises(UserError, match="different rows"):
            shuffled(len(groups), config, groups=groups)
    else:
        check(shuffled(len(groups), config, groups=groups), len(groups), groups)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=10, max_size=97), st.integers(0, 5))
def test_every_class_is_in_every_part(pairs: list[tuple[int, int]], seed: int) -> None:
    """Also if equal rows have different classes."""
    groups = groups_of_equal_rows(np.array(pairs)[:, :1])
    known, classes = np.unique([c for _, c in pairs], return_inverse=True)
    fewest = min(len({g for g, c in zip(groups, classes, strict=True) if c == kind}) for kind in range(len(known)))
    if len(known) < 2 or fewest < 3:
        with pytest.raises(UserError, match=r"one class|different rows"):
            stratified(classes, known, TaskConfig(seed=seed), groups)
        return
    try:
        parts = stratified(classes, known, TaskConfig(seed=seed), groups)
    except UserError as error:  # a few groups that share classes may not be divided at all
        if "copies of rows of other classes" not in str(error) or len(set(groups)) >= 3 * len(known):
            raise
        return
    check(parts, len(pairs), groups)
    assert all(set(classes[part]) == set(range(len(known))) for part in parts)


def test_equal_rows_are_copies() -> None:
    numbers = np.array([[0.0, 1], [-0.0, 1], [1, 0], [np.inf, 2], [0, 1], [np.inf, 2]])
    assert groups_of_equal_rows(numbers).tolist() == [0, 0, 1, 2, 0, 2]
    assert groups_of_equal_rows(np.array([[True], [False], [True]])).tolist() == [0, 1, 0]


def test_group_larger_than_the_test_part_is_in_the_training_data() -> None:
    groups = np.array([0] * 50 + list(range(1, 51)))
    for seed in range(5):
        parts = shuffled(100, TaskConfig(seed=seed), groups=groups)
        assert 0 in parts.train
        assert len(parts.test) == 20


def test_copies_count_once_per_class() -> None:
    """Five copies of one row are in one part."""
    classes = np.array([0] * 20 + [1] * 5)
    groups = np.array([*range(20), *[20] * 5])
    with pytest.raises(UserError, match=r"at least 3 different rows, .*fewer: rare \(1\)"):
        stratified(classes, ["common", "rare"], TaskConfig(), groups)


def test_equal_rows_are_in_one_part(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    a, b = generator.integers(0, 7, 211), generator.integers(0, 11, 211)
    words = np.array(["red", "green", "blue"])[generator.integers(0, 3, 211)]
    answers = np.array(["p", "q"])[generator.integers(0, 2, 211)]
    classes = table(csv(tmp_path, a=a, b=b / 3, colour=words, y=answers), "y")
    copies = 211 - len({*zip(a, b, words, strict=True)})
    assert any(fact.startswith(f"{copies} of 211 rows repeat an earlier row") for fact in classes.summary_lines)
    assert all(baseline.values["accuracy"] < 0.8 for baseline in classes.baselines())
    texts = [f"{i % 50:02} words and then {i}" for i in range(211)]
    loaded = [classes, table(csv(tmp_path, a=texts, y=answers), "y", seq_length=8)]
    for seed in range(3):
        loaded.append(table(csv(tmp_path, a=generator.integers(0, 31, 211), y=generator.random(211)), "y", seed=seed))
        y = generator.integers(0, 2, 211)
        loaded.append(arrays(tmp_path, {"seed": seed}, x=generator.integers(0, 3, (211, 3)), y=y))
        loaded.append(arrays(tmp_path, {"seed": seed}, x=generator.integers(0, 3, (211, 2, 2)) / 7, y=y))
    for task_data in loaded:
        train, validation, test = map(row_bytes, parts(task_data))
        assert not (train & test | train & validation | validation & test)
        assert "repeat an earlier row" in " ".join(task_data.summary_lines)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=97), st.integers(1, 120), st.integers(0, 5))
def test_a_sample_keeps_every_class(classes: list[int], count: int, seed: int) -> None:
    numbers = sample(np.array(classes), count, seed)
    assert len(numbers) == min(len(classes), max(count, len(set(classes))))
    assert (np.diff(numbers) > 0).all()
    assert {classes[i] for i in numbers} == set(classes)
    assert (numbers == sample(np.array(classes), count, seed)).all()


def test_sample_is_random() -> None:
    classes = np.zeros(10_007, np.int64)
    numbers = sample(classes, 1_000, 3)
    assert abs(numbers.mean() - 5_000) < 400
    assert not np.array_equal(numbers, sample(classes, 1_000, 4))
