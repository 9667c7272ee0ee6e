"""Arrays are loaded, or refused in one line with the location."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import arrays, more, parts, row_bytes

from attnlab.network import Inputs
from attnlab.tasks.base import UNSEEN
from attnlab.utils.errors import UserError

X = np.random.default_rng(7).normal(3, 2, (37, 5, 3))


def test_arrays(tmp_path: Path) -> None:
    task_data = arrays(tmp_path, x=X, y=np.arange(37) % 3)
    assert (task_data.inputs, task_data.length) == (Inputs("vectors", 3), 5)
    assert set.union(*map(row_bytes, parts(task_data))) == row_bytes(more(tmp_path / "a.npz", task_data))


def test_arrays_of_tokens_and_quantities(tmp_path: Path) -> None:
    task_data = arrays(tmp_path, x=np.arange(37 * 5).reshape(37, 5) % 11, y=X[:, 0, 0])
    assert task_data.inputs == Inputs("tokens", 11)
    assert task_data.train.x.dtype == torch.int64
    assert task_data.metric == "rmse"
    assert len(task_data.baselines()) == 3


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.arange(37) % 2 == 0, [False, True]),
        (np.array(["a", "b"] * 18 + ["a"]), ["a", "b"]),
        (np.arange(37, dtype=np.uint64) % 2 + 2**63, [2**63, 2**63 + 1]),
        (np.arange(37) % 3, [0, 1, 2]),
        ((np.arange(37) % 3).astype(np.float16), [0, 1, 2]),
    ],
)
def test_labels_keep_their_type(y: np.ndarray, labels: list[Any], tmp_path: Path) -> None:
    task_data = arrays(tmp_path, x=X, y=y)
    assert task_data.encoding["labels"] == labels
    assert [labels[i] for i in more(tmp_path / "a.npz", task_data).y[:, 0].tolist()] == y.tolist()


def test_target_type(tmp_path: Path) -> None:
    assert arrays(tmp_path, {"target_type": "number"}, x=X, y=np.arange(37) % 3).metric == "rmse"
    assert arrays(tmp_path, {"target_type": "class"}, x=X, y=np.arange(37) % 3 + 0.5).encoding["labels"][0] == 0.5


def test_new_data(tmp_path: Path) -> None:
    task_data = arrays(tmp_path, x=X, y=np.arange(37) % 3)
    np.savez(tmp_path / "less.npz", x=X[:3])
    assert more(tmp_path / "less.npz", task_data).y.numel() == 0
    with pytest.raises(UserError, match="y is missing"):
        more(tmp_path / "less.npz", task_data, labelled=True)
    np.savez(tmp_path / "other.npz", x=X[:3], y=np.array([7, 1, 1]))
    assert more(tmp_path / "other.npz", task_data).y[:, 0].tolist() == [UNSEEN, 1, 1]
    np.savez(tmp_path / "far.npz", x=np.where(X[4, 1, 1] == X, 3e38, X))
    with pytest.raises(UserError, match=r"x\[4, 1, 1\] in .* is 3e\+38, too far"):
        more(tmp_path / "far.npz", task_data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": X}, "y is missing"),
        ({"z": X}, "holds z; expected x and y"),
        ({"x": X, "y": np.arange(36)}, "has shape (36,); expected (37,)"),
        ({"x": X[:, 0, 0], "y": np.arange(37)}, "expected (B, N, D)"),
        ({"x": X[:, :, 0], "y": np.arange(37)}, "expected integers"),
        ({"x": np.full((37, 5), -1), "y": np.arange(37)}, "tokens are counted from 0"),
        ({"x": np.where(X[4, 1, 1] == X, np.nan, X), "y": np.arange(37) % 2}, "first in sequence 4"),
        ({"x": X, "y": np.where(np.arange(37) == 3, np.nan, X[:, 0, 0])}, "y is missing or not finite in y[3] of"),
        ({"x": X, "y": np.zeros(37, int)}, "one class (0)"),
        ({"x": X, "y": np.full(37, 0.1)}, "y is 0.1 in every row, so"),
        ({"x": X, "y": np.array([{}] * 37)}, "no readable .npz"),
        ({"x": X, "y": np.arange(37) * 1j}, "expected numbers, strings or Booleans"),
        ({"x": np.where(X[4, 1, 1] == X, 1e39, X), "y": np.arange(37) % 2}, "x[4, 1, 1] in"),
        ({"x": X, "y": np.where(np.arange(37) == 3, 1e39, X[:, 0, 0])}, "y is 1e+39 in y[3] of"),
    ],
)
def test_bad_arrays(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        arrays(tmp_path, **given)
