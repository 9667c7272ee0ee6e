"""A finished run, shared by the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import trainer


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, read-only."""
    path = tmp_path_factory.mktemp("done") / "run"
    trainer(path).fit()
    return path


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be changed."""
    return Path(shutil.copytree(done, tmp_path / "copied"))
