"""Targets and features far from zero are standardized in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import arrays, csv, more, parts, row_bytes, table

from attnlab import tasks
from attnlab.tasks._split import shuffled
from attnlab.tasks.base import TaskConfig, TaskData
from attnlab.training.experiment import prepare
from attnlab.training.inference import predict_file
from attnlab.training.settings import defaults
from attnlab.training.train import start, train

COUNT = 211
X = np.array([i * 37 % 211 / 3 for i in range(COUNT)])
OFFSETS = [0, 1_700_000_000, -(2**60)]


def x_values(task_data: TaskData) -> torch.Tensor:
    return torch.cat([part.x for part in parts(task_data)])


@pytest.mark.parametrize("offset", OFFSETS[1:])
def test_features(offset: int, tmp_path: Path) -> None:
    """A Unix time gives the same inputs as the seconds since the first one."""
    steps = np.random.default_rng(3).choice(9_973, COUNT, replace=False) * 4096
    answers = ["ab"[i % 2] for i in range(COUNT)]
    near, far = (table(csv(tmp_path, x=steps + o, y=answers), "y") for o in (0, offset))
    assert torch.allclose(x_values(near), x_values(far), atol=1e-4, rtol=0)
    assert len(x_values(far)[:, 0, 1].unique()) == COUNT
    again = more(tmp_path / "t.csv", far)
    assert set(again.x[:, 0, 1].tolist()) == set(x_values(far)[:, 0, 1].tolist())
    one, other = ([next(iter(b.values.values())) for b in task_data.baselines()] for task_data in (near, far))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
@pytest.mark.parametrize("offset", OFFSETS[1:])
def test_features_of_arrays(offset: int, dtype: Any, tmp_path: Path) -> None:
    steps = np.arange(COUNT * 6).reshape(COUNT, 3, 2) * 37 % 1009 * 65_536
    near, far = (arrays(tmp_path, x=(steps + o).astype(dtype), y=np.arange(COUNT) % 2) for o in (0, offset))
    assert torch.allclose(x_values(near), x_values(far), atol=1e-5, rtol=0)
    again = more(tmp_path / "a.npz", far)
    assert row_bytes(again) == set.union(*map(row_bytes, parts(far)))
    assert again.y.shape == (COUNT, 1)


def test_float32_arrays_are_standardized(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(5, 3, (COUNT, 3, 2)).astype(np.float32)
    task_data = arrays(tmp_path, x=x, y=np.arange(COUNT) % 2)
    values = x_values(task_data)
    assert values.dtype == torch.float32
    back = values.double().numpy() * task_data.encoding["scale"] + task_data.encoding["shift"]
    assert np.sort(back.ravel()) == pytest.approx(np.sort(x.ravel().astype(np.float64)), abs=1e-5)


def test_quantities(tmp_path: Path) -> None:
    """Perfect scores decode to the targets, and the offset does not change the baselines' errors."""
    problems = [table(csv(tmp_path, x=X, y=[f"{o + 5 * x:.6f}" for x in X]), "y") for o in (0, 10**9)]
    near, far = ({b.name: b.values["rmse"] for b in task_data.baselines()} for task_data in problems)
    assert far == pytest.approx(near, rel=1e-5)
    split = shuffled(COUNT, TaskConfig())
    away = X[split.test] - X[split.train].mean()
    shrunk = 5 / (len(split.train) + 1)  # ridge of a standardized feature shrinks the slope by n / (n + 1)
    assert far["ridge regression"] == pytest.approx(shrunk * np.sqrt(np.mean(away**2)), rel=1e-3)
    task_data = problems[1]
    test = task_data.test
    answers = tasks.load("table").decode(task_data.outputs, test.y, test, task_data.encoding)["prediction"]
    assert len(set(answers)) == len(test.y)
    assert answers == pytest.approx(10**9 + 5 * X[split.test], abs=1e-4)


@pytest.mark.slow
def test_predictions_match_the_reported_error(tmp_path: Path) -> None:
    y = 1_700_000_000 + np.arange(COUNT) % 30
    path = csv(tmp_path, x=np.arange(COUNT) % 30 + X / 1e4, y=y)
    settings = defaults("multihead", "table").updated(
        {"data": str(path), "target": "y", "steps": 60, "embed_dim": 16, "layers": 1}, "the test"
    )
    experiment = prepare(settings)
    run = start(experiment, tmp_path / "run")
    result = train(experiment, run)[1]
    assert result is not None
    predicted = np.array(predict_file(run.path, path).columns["prediction"])
    assert len(np.unique(predicted)) > COUNT / 2
    test = shuffled(COUNT, TaskConfig()).test
    assert np.sqrt(np.mean((predicted - y)[test] ** 2)) == pytest.approx(result["test"], rel=1e-4)
