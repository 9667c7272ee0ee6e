"""For any arguments a command succeeds or prints a one-line error: no traceback, no hang."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calls import call, write_files
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli._flags import _interface
from attnlab.cli._parse import flags
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError

EXAMPLES = int(os.environ.get("ATTNLAB_EXAMPLES", "50"))
COMMANDS = ("train", "evaluate", "predict", "runs", "models", "tasks", "generate", "heads")
FLAGS = {
    **{name: flags(import_module(f"attnlab.cli.{name}").Options) for name in COMMANDS[1:] if name != "runs"},
    "runs": ["--folder", "--json"],
    "train": flags(_interface(defaults("multihead", "digits"))),
}
PLACES = [
    "run",
    "text",
    "mine.csv",
    "x.npz",
    "words.txt",
    "s.toml",
    "s.json",
    "none",
    ".",
    "",
    "diff",
    "out.csv",
    "o.pth",
]

numbers = st.integers(-3, 70).map(str) | st.integers().map(str) | st.floats().map(str)
names = st.sampled_from([*PLACES, *registry.names(), *tasks.names(), "None", "nan", "true", "cpu", "way", "a,b", "f1"])
# No slash: what is written stays in the current folder. No zero: no system lets one through.
texts = st.text(st.characters(blacklist_characters="/\0"), max_size=20) | st.sampled_from(["x" * 300, "ü" * 9_000, "-"])
values = numbers | names | texts


FITTING: dict[str, list[str]] = {
    "--model": registry.names(),
    "--task": tasks.names(),
    "--data": ["mine.csv", "words.txt", "x.npz"],
    "--target": ["way", "a", "a,b", "None", "-x"],
    "--target_type": ["class", "number"],
    "--missing": ["mean", "error", "drop"],
    "--split_by": ["lines", "paragraphs", "position"],
    "--class_weight": ["balanced"],
    "--metric": ["f1", "accuracy", "rmse"],
    "--position_embedding": ["learned", "sinusoidal", "none"],
    "--positions": ["rotary", "rotary(base=500)", "t5(buckets=3", "alibi"],
    "--precision": ["float64", "bfloat16"],
    "--ablation": ["zero", "mean"],
    "--output": ["out.csv", "out.jsonl", "none/out.csv"],
    "--save_path": ["o.pth", "none/o.safetensors", "run"],
    "--run_dir": ["new", "run", "mine.csv"],
    "--config": ["s.toml", "s.json", "run/config.json"],
    "--resume": ["run", "text"],
    "--init_from": ["run", "o.pth"],
    "--device": ["cpu", "auto", "cuda:99"],
    "--run": ["run", "text"],
}


@st.composite
def fitting(draw: st.DrawFn) -> list[str]:
    """A command with flags that it has and values of the right kind, be they out of range or not for each other."""
    command = draw(st.sampled_from(["train", "train", *COMMANDS]))
    words = [command]
    if command in ("evaluate", "predict", "generate", "heads"):
        words.append(draw(st.sampled_from(["run", "text", "run", "none"])))
    if command == "predict":
        words += ["--data", draw(st.sampled_from(["mine.csv", "words.txt", "x.npz", "none.csv"]))]
    if command == "runs":
        words += draw(st.sampled_from([[], ["."], ["diff", "run", "text"], ["diff", "run", "none"]]))
    for flag in draw(st.lists(st.sampled_from(FLAGS[command]), max_size=4, unique=True)):
        if flag in ("--json", "--quiet", "--interactive", "--overwrite", "--mlp", "--bias", "--causal", "--compile"):
            words.append(flag)
        elif flag not in ("--folder", "--name") and not (flag == "--run" and command != "train"):
            words += [flag, draw(st.sampled_from(FITTING.get(flag, ["1", "2", "8", "0.5", "0", "-1", "1e9", "nan"])))]
    return words


@st.composite
def misspelled(draw: st.DrawFn, flag: str) -> str:
    """A flag with a letter more, less or in another place, or spelled with hyphens."""
    at = draw(st.integers(2, len(flag) - 1))
    return draw(
        st.sampled_from(
            [
                flag.replace("_", "-"),
                flag[:at] + flag[at + 1 :],
                flag[:at] + flag[at] + flag[at:],
                flag.upper(),
                flag[1:],
            ]
        )
    )


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with flags of its own, right and wrong, with and without values."""
    command = draw(st.sampled_from(COMMANDS))
    own = st.sampled_from(FLAGS[command])
    flag = own | own.flatmap(misspelled) | st.sampled_from(["--help", "-h", "--no_such", "--", "--no_mlp", "-x"])
    given_flag = st.one_of(
        st.tuples(flag, values).map(list),
        st.tuples(flag, values).map(lambda pair: ["=".join(pair)]),
        flag.map(lambda word: [word]),
        values.map(lambda word: [word]),
    )
    first = draw(st.sampled_from([[], ["run"], ["text"], ["none"], ["diff"], ["diff", "run", "text"]]))
    rest = draw(st.lists(given_flag, max_size=5))
    return [command, *first, *(word for words in rest for word in words)]


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs and some files; only to be read."""
    folder = tmp_path_factory.mktemp("lines")
    small = ("--quiet", "--steps", "2", "--model", "multihead", "--embed_dim", "8", "--num_heads", "2", "--layers", "1")
    with contextlib.chdir(folder):
        write_files(
            folder,
            {
                "mine.csv": "a,b,way\n" + "".join(f"{i % 7}.5,{i % 5},{'xyz'[i % 3]}\n" for i in range(89)),
                "words.txt": "".join(f"the {i} quick brown foxes jump over {i} dogs\n\n" for i in range(97)),
                "s.toml": "embed_dim = 8\n",
                "s.json": '{"embed_dim": "wide"}',
            },
        )
        np.savez("x.npz", x=np.zeros((3, 8, 8), "float32"))
        assert call("train", *small, "--data", "mine.csv", "--target", "way", "--run_dir", "run").code == 0
        assert call("train", *small, "--data", "words.txt", "--seq_length", "13", "--run_dir", "text").code == 0
    return folder


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains, studies heads or writes long texts: what is asked for may be arbitrarily large."""

    def study(*_: Any, **__: Any) -> Any:
        raise UserError("not in this test")

    def generate(*_: Any, length: int, **__: Any) -> list[str]:
        return ["text"] * min(length, 3)

    monkeypatch.setattr("attnlab.cli.train.train", lambda _: 0)
    monkeypatch.setattr("attnlab.analysis.runs.study_run", study)
    monkeypatch.setattr("attnlab.training.generate.generate", generate)


@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(line=fitting() | lines())
@example(line=["train", "--ignore", "a", "--", "--interactive"])
@example(line=["train", "--interactive", "--resume", "run"])
@example(line=["train", "--config", "run", "--task", ""])
@example(line=["runs", "diff", "run", "text", "extra"])
@example(line=["predict", "run", "--data", "mine.csv", "--output", "x" * 300 + ".csv"])
def test_no_command_line_raises(line: list[str], prepared_folder: Path, nothing_long: None) -> None:
    here = Path.cwd()
    if not (here / "run").exists():
        shutil.copytree(prepared_folder, here, dirs_exist_ok=True)
    before = sys.stdin
    sys.stdin = io.StringIO("\n" * 3)
    try:
        done = call(*line)
    finally:
        sys.stdin = before
    assert done.code in (0, 2), done
    if done.code == 2:
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
        assert len(done.err) < 2_000 + 3 * sum(map(len, line)), "a line that can be read"
    assert "Traceback" not in done.out + done.err
