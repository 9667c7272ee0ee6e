"""Targets: labels are kept, numbers are exact, and constant targets are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from own_data import csv, more, table, targets, uses, whys, write

from attnlab import tasks
from attnlab.tasks.base import UNSEEN
from attnlab.utils.errors import UserError

COUNT = 67
X = [i * i % 61 / 7 + i for i in range(COUNT)]


def cycle(*answers: Any) -> list[Any]:
    return [answers[i % len(answers)] for i in range(COUNT)]


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (["1", "01", "001", "01"], ["001", "01", "1"]),
        (["10", "9", "-3"], [-3, 9, 10]),
        (["1.0", "2.0", "10.0"], ["1.0", "2.0", "10.0"]),
        (["true", "false"], ["false", "true"]),
        (["x", "10", "9"], ["10", "9", "x"]),
        (["é", "e", " e"], [" e", "e", "é"]),
        (["18446744073709551620", "18446744073709551621"], [18446744073709551620, 18446744073709551621]),
    ],
)
def test_labels_of_csv(answers: list[str], labels: list[Any], tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, x=X, y=cycle(*answers)), "y")
    assert task_data.encoding["labels"] == labels
    assert {str(label) for label in labels} == set(answers)  # they are printed as they came
    y = more(tmp_path / "t.csv", task_data, labelled=True).y
    scores = torch.eye(len(labels))[y]
    decoded = tasks.load("table").decode(task_data.outputs, scores, task_data.test, task_data.encoding)
    assert list(map(str, decoded["prediction"])) == cycle(*answers)
    assert (uses(task_data)["y"], task_data.encoding["target"]) == ("target", "y")
    assert whys(task_data)["y"].startswith(f"{len(labels)} classes")
    shares = torch.bincount(task_data.train.y[:, 0]) / len(task_data.train.y)
    assert shares[task_data.encoding["majority"]] == shares.max() == pytest.approx(task_data.encoding["share"])


@pytest.mark.parametrize(
    ("answers", "labels"),
    [([3, 1, 2], [1, 2, 3]), ([True, False], [False, True]), (["b", "a"], ["a", "b"]), ([2.0, 1.0], [1.0, 2.0])],
)
def test_labels_of_jsonl(answers: list[Any], labels: list[Any], tmp_path: Path) -> None:
    task_data = table(write(pl.DataFrame({"x": X, "y": cycle(*answers)}), tmp_path / "t.jsonl"), "y")
    assert task_data.encoding["labels"] == labels
    assert {type(label) for label in task_data.encoding["labels"]} == {type(label) for label in labels}
    assert json.loads(json.dumps(task_data.encoding)) == task_data.encoding
    # the same labels in a CSV file, as other programs write them
    again = more(csv(tmp_path, x=X, y=cycle(*answers)), task_data, labelled=True)
    assert [labels[i] for i in again.y[: len(answers), 0].tolist()] == answers
    assert more(csv(tmp_path, x=X, y=cycle("other")), task_data, labelled=True).y.unique().tolist() == [UNSEEN]


def test_integers_of_csv_match_parquet(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, x=X, y=cycle(0, 1)), "y")
    frame = pl.DataFrame({"x": X, "y": pl.Series(cycle(1.0, 0.0))})
    assert more(write(frame, tmp_path / "t.parquet"), task_data).y[:2, 0].tolist() == [1, 0]
    assert more(csv(tmp_path, x=X, y=cycle("01")), task_data).y.unique().tolist() == [UNSEEN]


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        ([i % 20 for i in range(COUNT)], "accuracy"),
        ([i % 21 for i in range(COUNT)], "rmse"),
        ([i % 3 + 0.5 for i in range(COUNT)], "rmse"),
        ([f"{i % 3}a" for i in range(COUNT)], "accuracy"),
    ],
)
def test_classes_or_quantities(answers: list[Any], metric: str, tmp_path: Path) -> None:
    assert table(csv(tmp_path, x=X, y=answers), "y").metric == metric
    assert table(write(pl.DataFrame({"x": X, "y": answers}), tmp_path / "t.jsonl"), "y").metric == metric


def test_target_type(tmp_path: Path) -> None:
    path = csv(tmp_path, x=X, y=cycle(1, 2, 4))
    task_data = table(path, "y", target_type="number")
    assert task_data.metric == "rmse"
    assert np.unique(targets(task_data).round(5)).tolist() == [1, 2, 4]
    task_data = table(csv(tmp_path, x=X, y=cycle(1.5, 2, 4)), "y", target_type="class")
    assert task_data.encoding["labels"] == ["1.5", "2", "4"]
    frame = pl.DataFrame({"x": X, "y": cycle(True, False)})
    assert table(write(frame, tmp_path / "t.jsonl"), "y", target_type="number").metric == "rmse"


def test_target_constant_in_the_training_rows(tmp_path: Path) -> None:
    x = [0.5] * 60 + [float(i) for i in range(1, 8)]  # the repeated row is larger than the test part: it is trained on
    path = csv(tmp_path, x=x, y=[0.1] * 66 + [0.7])
    assert {refusal(path, seed) for seed in range(3)} == {"every training row has the same y (0.1): nothing to learn"}


def test_integers_above_64_bits(tmp_path: Path) -> None:
    huge = [2**64 + i * 10**7 for i in range(COUNT)]
    task_data = table(csv(tmp_path, x=X, y=huge), "y")
    assert task_data.metric == "rmse"
    assert np.sort(targets(task_data)) == pytest.approx(np.array(huge, dtype=np.float64), abs=100)


def test_target_too_far_from_the_others_is_refused(tmp_path: Path) -> None:
    """In any part of the split: its square would overflow in float32."""
    messages = [refusal(csv(tmp_path, x=X, y=[*X[:40], 1e37, *X[41:]]), seed) for seed in range(12)]
    assert {message[:22] for message in messages} == {"", "y is 1e+37 in row 41 o"}


def refusal(path: Path, seed: int) -> str:
    """The message of the error, or none if the targets can be trained on."""
    try:
        task_data = table(path, "y", seed=seed)
    except UserError as error:
        return str(error)
    assert torch.isfinite(task_data.train.y.square()).all()
    assert task_data.train.y.max() > 5
    return ""


def test_rows_without_a_target_can_be_dropped(tmp_path: Path) -> None:
    answers = ["", "NA", "null", *cycle("a", "b")[3:]]
    task_data = table(csv(tmp_path, x=X, y=answers), "y", missing="drop")
    assert len(targets(task_data)) == COUNT - 3
    assert task_data.encoding["labels"] == ["a", "b"]
