"""Every command runs in an empty folder, as with an installed package."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import ROWS, TABLE, trained, write_files


def draw_nothing(patched: pytest.MonkeyPatch) -> None:
    """Leave the figures of a run empty: they take most of its time."""
    for figure in ("curve", "confusion"):
        patched.setattr(f"attnlab.training.report.draw_{figure}", lambda run, _: run.place("curve.png").touch())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    draw_nothing(monkeypatch)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # as if activated
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and small runs; only to be read."""
    folder = tmp_path_factory.mktemp("made")
    digits = ("--task", "digits", "--layers", "2", "--steps", "5")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patched:  # the data are the same for all copies
        draw_nothing(patched)
        text = "".join(f"the {i} quick brown foxes jump over {i} dogs\n\n" for i in range(331))
        write_files(folder, {"mine.csv": "a,b,way\n" + ROWS, "mine.txt": text})
        np.savez("x.npz", x=np.random.default_rng(0).random((3, 8, 8)).astype("float32"))
        trained("--model", "multihead", "--num_heads", "4", *digits, run="digits")
        trained("--model", "groupedquery", "--num_heads", "4", "--num_kv_heads", "2", *digits, run="grouped")
        trained("--model", "selfhead", *digits, run="alone")
        trained("--model", "multihead", "--data", "mine.txt", "--seq_length", "13", "--steps", "2", run="text")
        trained(*TABLE, "--steps", "5", run="runs/one")
        trained(*TABLE, "--steps", "5", "--seed", "3", "--learning_rate", "0.01", run="runs/two[lr=0.01]")
        trained("--model", "selfhead", *TABLE[4:], "--steps", "7", run="runs/self")
        trained(*TABLE, "--epochs", "2", "--patience", "1", "--learning_rate", "1e-9", run="runs/plateau")
    return folder


@pytest.fixture
def here(made: Path, empty_folder: Path) -> Path:
    """A copy of the folder with data and runs, where the command runs."""
    return Path(shutil.copytree(made, empty_folder, dirs_exist_ok=True))
