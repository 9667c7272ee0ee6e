"""For any arguments a command succeeds or prints a one-line error: no traceback, no hang."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

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
FILES = ["mine.csv", "mine.txt", "x.npz", "s.toml", "s.json", "out.csv", "o.pth"]
PLACES = ["runs/one", "text", *FILES, "none", ".", "", "diff"]

numbers = st.integers(-3, 70).map(str) | st.integers().map(str) | st.floats().map(str)
names = st.sampled_from([*PLACES, *registry.names(), *tasks.names(), "None", "nan", "true", "cpu", "way", "a,b", "f1"])
# No slash: what is written stays in the current folder. No zero: no system lets one through.
texts = st.text(st.characters(blacklist_characters="/\0"), max_size=20) | st.sampled_from(["x" * 300, "ü" * 9_000, "-"])
values = numbers | names | texts


FITTING: dict[str, list[str]] = {
    "--model": registry.names(),
    "--task": tasks.names(),
    "--data": ["mine.csv", "mine.txt", "x.npz"],
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
    "--save_path": ["o.pth", "none/o.safetensors", "runs/one"],
    "--run_dir": ["new", "runs/one", "mine.csv"],
    "--config": ["s.toml", "s.json", "runs/one/config.json"],
    "--resume": ["runs/one", "text"],
    "--init_from": ["runs/one", "o.pth"],
    "--device": ["cpu", "auto", "cuda:99"],
    "--run": ["runs/one", "text"],
}


@st.composite
def fitting(draw: st.DrawFn) -> list[str]:
    """A command with flags that it has and values of the right kind, be they out of range or not for each other."""
    command = draw(st.sampled_from(["train", "train", *COMMANDS]))
    words = [command]
    if command in ("evaluate", "predict", "generate", "heads"):
        words.append(draw(st.sampled_from(["runs/one", "text", "runs/one", "none"])))
    if command == "predict":
        words += ["--data", draw(st.sampled_from(["mine.csv", "mine.txt", "x.npz", "none.csv"]))]
    if command == "runs":
        words += draw(st.sampled_from([[], ["."], ["diff", "runs/one", "text"], ["diff", "runs/one", "none"]]))
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
    doubled = flag[:at] + flag[at] + flag[at:]
    return draw(st.sampled_from([flag.replace("_", "-"), flag[:at] + flag[at + 1 :], doubled, flag.upper(), flag[1:]]))


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
    first = draw(st.sampled_from([[], ["runs/one"], ["text"], ["none"], ["diff"], ["diff", "runs/one", "text"]]))
    rest = draw(st.lists(given_flag, max_size=5))
    return [command, *first, *(word for words in rest for word in words)]


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains, studies heads or writes long texts: what is asked for may be arbitrarily large."""

    def study(*_: Any, **__: Any) -> Any:
        raise UserError("not in this test")

    def generate(*_: Any, length: int, **__: Any) -> list[str]:
        return ["text"] * min(length, 3)

    monkeypatch.setattr("attnlab.cli._training.train", lambda _: 0)
    monkeypatch.setattr("attnlab.analysis.runs.study_run", study)
    monkeypatch.setattr("attnlab.training.generate.generate", generate)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(line=fitting() | lines())
@example(line=["train", "--ignore", "a", "--", "--interactive"])
@example(line=["train", "--interactive", "--resume", "runs/one"])
@example(line=["train", "--config", "runs/one", "--task", ""])
@example(line=["runs", "diff", "runs/one", "text", "extra"])
@example(line=["predict", "runs/one", "--data", "mine.csv", "--output", "x" * 300 + ".csv"])
def test_no_command_line_raises(line: list[str], here: Path, nothing_long: None) -> None:
    write_files(here, {"s.toml": "embed_dim = 8\n", "s.json": '{"embed_dim": "wide"}'})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO("\n" * 3))
        done = call(*line)
    assert done.code in (0, 2), done
    if done.code == 2:
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
        assert len(done.err) < 2_000 + 3 * sum(map(len, line)), "a line that can be read"
    assert "Traceback" not in done.out + done.err
