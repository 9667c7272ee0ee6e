"""Finished runs, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import F, N, experiment, trainer

from attnlab.training import train
from attnlab.training.experiment import prepare
from attnlab.training.settings import defaults


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its result, read-only."""
    path = tmp_path_factory.mktemp("done") / "run"
    ready = experiment()
    train.train(ready, train.start(ready, path), checkpoint_seconds=0)
    return path


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed, read-only."""
    path = tmp_path_factory.mktemp("other") / "run"
    trainer(path, seed=7).fit()
    return path


@pytest.fixture
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without the figure, which takes most of the time of a small run."""
    monkeypatch.setattr("attnlab.training.report.draw_curve", lambda *_: None)


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be changed."""
    return Path(shutil.copytree(done, tmp_path / "copied"))


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on a small file of arrays without baselines, read-only."""
    folder = tmp_path_factory.mktemp("sent")
    x = np.random.default_rng(0).normal(size=(61, N, F)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.array(["no", "yes"])[(x[:, 0, 0] > 0).astype(int)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.tasks._supervised.classifiers", lambda *_: [])
        small = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 3, "data": str(folder / "data.npz")}
        ready = prepare(defaults("multihead", "arrays").updated(small, "the test"))
        run = train.start(ready, folder / "run")
        train.train(ready, run)
        yield folder / "run"


@pytest.fixture
def received(sent: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sent, tmp_path / "run"))
