"""The digits task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attnlab import tasks
from attnlab.network import Inputs
from attnlab.tasks.base import TaskConfig, TaskData
from attnlab.utils.errors import UserError


@pytest.fixture(scope="module")
def task_data() -> TaskData:
    return tasks.load("digits").load(TaskConfig())


def test_the_split_is_stratified(task_data: TaskData) -> None:
    parts = [task_data.train, task_data.validation, task_data.test]
    assert sum(len(part.x) for part in parts) == 1797
    assert len({row.numpy().tobytes() for part in parts for row in part.x}) == 1797
    assert task_data.train.x.shape[1:] == (8, 8)
    assert (task_data.train.x.min(), task_data.train.x.max()) == (0, 1)
    for part in parts:
        share = part.y.flatten().bincount()
        assert (share / share.sum() - 0.1).abs().max() < 0.015


def test_baselines_match_scikit_learn(task_data: TaskData) -> None:
    found = {b.name: b.values["accuracy"] for b in task_data.baselines()}
    assert found.keys() == {"3 nearest neighbours", "logistic regression", "majority class"}
    assert found["3 nearest neighbours"] > 0.96
    assert 0.93 < found["logistic regression"] < 0.99
    assert found["majority class"] == pytest.approx(0.1, abs=0.01)


def test_pixels_out_of_range_are_refused(tmp_path: Path) -> None:
    digits, inputs = tasks.load("digits"), Inputs("vectors", 8)
    np.savez(tmp_path / "right.npz", x=np.full((3, 8, 8), 0.5))
    np.savez(tmp_path / "wrong.npz", x=np.full((3, 8, 8), 16.0))
    assert digits.read(tmp_path / "right.npz", inputs, 8, {}).x.dtype == torch.float32
    with pytest.raises(UserError, match=r"pixels from 0 .* to 1"):
        digits.read(tmp_path / "wrong.npz", inputs, 8, {})


def test_wrong_target_shape_is_refused(task_data: TaskData) -> None:
    flat = task_data.train._replace(y=task_data.train.y.flatten())
    with pytest.raises(ValueError, match="of kind classes need"):
        TaskData(flat, flat, flat, task_data.inputs, task_data.outputs, 8, "accuracy")
