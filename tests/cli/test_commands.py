"""The commands in a typical order, and their output in unusual terminals."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from calls import SMALL, call, contents_of, output_of, trained, write_files

import attnlab
from attnlab import cli
from attnlab.cli._console import Console
from attnlab.cli._format import show_result
from attnlab.cli._invocation import program, trainer
from attnlab.network import Network
from attnlab.training.runs import Run

HEADS = (*SMALL, "--num_heads", "2")
DIGITS = (*HEADS, "--task", "digits", "--steps", "5")


def test_train_evaluate_predict_runs() -> None:
    done = call(*DIGITS)
    assert (done.code, done.err) == (0, "")
    for words in (
        "task      digits: ",
        "1,295 train / 143 validation / 359 test",
        "network   multihead: 1 layer, embed_dim 8, num_heads 2",
        "training  5 steps of 32 sequences, 1,280 tokens",
        "time      about ",
        "run       runs/digits-multihead-001",
        "step 5 of 5  loss ",
        "test accuracy on 359 examples (best network",
        "3 nearest neighbours",
        "logistic regression",
        "majority class",
        "digits does not rank mechanisms",
        "evaluate runs/digits-multihead-001",
        "predict runs/digits-multihead-001 --data FILE",
    ):
        assert words in done.out
    assert "\x1b" not in done.out, "no colours into a pipe"
    here = Path("runs/digits-multihead-001")
    kept = {"config.json", "metrics.jsonl", "model.safetensors", "state.safetensors", "curve.png", "report.md"}
    assert kept < {p.name for p in here.iterdir()}

    result = Run.open(here).result()
    assert result is not None
    before = contents_of(Path())
    again = json.loads(call("evaluate", str(here), "--json").out)
    times = [name for name in result if name.endswith("seconds")]
    assert again == {**result, **{name: again[name] for name in times}}
    shown = call("evaluate", str(here)).out
    assert re.search(rf"  multihead +{result['test']:.3f} ", shown)
    assert "digits does not rank mechanisms" in shown

    listed = json.loads(call("runs", "--json").out)
    assert [(r["run"], r["test"], r["step"], r["status"]) for r in listed] == [
        (str(here), result["test"], 5, "finished")
    ]
    assert f"accuracy {result['test']:.3f}" in call("runs").out
    assert contents_of(Path()) == before, "looking changes nothing"

    network = attnlab.load(here)
    rng = np.random.default_rng(0)
    np.savez("new.npz", x=rng.random((3, 8, 8)).astype("float32"))
    rows = list(csv.DictReader(io.StringIO(call("predict", str(here), "--data", "new.npz").out)))
    scores = network(torch.from_numpy(np.load("new.npz")["x"]))
    assert [int(row["prediction"]) for row in rows] == scores.argmax(-1).flatten().tolist()
    assert call("predict", str(here), "--data", "new.npz", "--output", "out.jsonl").out == "wrote 3 rows to out.jsonl\n"
    lines = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [str(line["prediction"]) for line in lines] == [row["prediction"] for row in rows]


def test_the_command_in_the_report_reproduces_the_run() -> None:
    done = call(*DIGITS, "--json", "--seed", "3", "--run_dir", "a")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == Run.open(Path("a")).result(), "nothing else is printed"
    command = Path("a/report.md").read_text("utf-8").split("```sh\n")[1].split("\n")[0]
    assert command.startswith("attnlab train --model multihead --task digits ")
    words = command.split()[1:]
    quiet = output_of(*words, "--quiet", "--run_dir", "b")
    assert "test accuracy" in quiet
    assert "step 5 of 5" not in quiet
    assert "next:" not in quiet
    out = output_of(*words, "--run_dir", "my run; ü", "--save_path", "models/x.safetensors")
    shown = next(line.strip() for line in out.splitlines() if " evaluate " in line)
    assert shown.endswith("evaluate 'my run; ü'"), "paths are quoted for the shell"
    assert "saved to models/x.safetensors" in out
    output_of("train", "--resume", "b", "--save_path", "late.pth")  # a finished run can still be saved
    assert len({Path(run, "model.safetensors").read_bytes() for run in ("a", "b", "my run; ü")}) == 1
    expected = attnlab.load("a").state_dict()
    for path in ("models/x.safetensors", "late.pth"):
        network = attnlab.load(path)
        assert isinstance(network, Network)
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_text_is_generated(here: Path) -> None:
    generate = ("generate", "text", "--length", "23")
    first, again, other = (output_of(*generate, "--prompt", "the ", "--seed", seed) for seed in "001")
    assert first.startswith("the ")
    assert first == again != other
    assert output_of(*generate, "--temperature", "0") == output_of(*generate, "--temperature", "0", "--seed", "1")


def test_data_that_moved_are_found_with_a_flag() -> None:
    rows = "".join(f"{i * 7 % 31},{'up' if i * 7 % 31 > 15 else 'down'}\n" for i in range(97))
    write_files(Path(), {"mine.csv": "a,way\n" + rows, "other.csv": "a,way\n" + rows.replace("30,", "29,")})
    trained("--num_heads", "2", "--data", "mine.csv", "--target", "way", "--steps", "3")
    Path("mine.csv").rename("moved.csv")
    extend = ("train", "--resume", "run", "--steps", "5")
    gone = "mine.csv, which no longer exists; restore it, or give its new path with --data"
    assert gone in call(*extend).err
    assert "other.csv was altered since run was started" in call(*extend, "--data", "other.csv").err
    assert "step 5 of 5" in output_of(*extend, "--data", "moved.csv")
    result = Run.open(Path("run")).result()
    assert result is not None
    moved = json.loads(output_of("evaluate", "run", "--data", "moved.csv", "--json"))
    assert (moved["metrics"], moved["confusion"]) == (result["metrics"], result["confusion"])
    assert moved["notes"][0].startswith("the run was trained on moved.csv: only its test rows")
    assert json.loads(output_of("evaluate", "run", "--data", "other.csv", "--json"))["test_examples"] == 97


# Pipes and terminals


def test_a_closed_pipe_and_a_terminal_without_utf_8_are_no_errors() -> None:
    command = [sys.executable, "-m", "attnlab", "models"]
    closed = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert closed.stdout is not None
    closed.stdout.close()
    assert closed.stderr is not None
    with closed.stderr as errors:
        assert errors.read() == b""
    assert closed.wait() == 141
    ascii = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (ascii.returncode, ascii.stderr) == (0, "")
    assert "multihead" in ascii.stdout


def test_a_pipe_gets_utf_8_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr("attnlab.cli._overview", lambda: "größe")
    assert cli.main([]) == 0
    assert written.getvalue() == "größe\n".encode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_reported() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "attnlab", "models"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("width", [40, 72])
def test_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for line in ("models", "tasks"):
        assert max(map(len, call(*line.split()).out.splitlines())) <= width


def test_printed_commands_work_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (program(), trainer()) == ("attnlab", "attnlab train")
    write_files(Path(), {"main.py": ""})
    Path("models").mkdir()
    assert (program(), trainer()) == ("attnlab", "python main.py")
    monkeypatch.setenv("PATH", "/usr/bin")  # the environment is not activated
    assert (program(), trainer()) == (f"{sys.executable} -m attnlab", f"{sys.executable} main.py")
    monkeypatch.setattr(sys, "executable", str(Path(".venv/bin/python").absolute()))
    assert (program(), trainer()) == (".venv/bin/python -m attnlab", ".venv/bin/python main.py")


@pytest.mark.parametrize(("width", "terminal"), [(60, True), (80, True), (20, False)])
def test_a_result_on_a_narrow_terminal(width: int, terminal: bool) -> None:
    labels = ["Austria", "Liechtenstein", "Switzerland", "United Kingdom", "Italy"]
    names = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc")
    result = {
        "model": "multihead",
        "metric": "accuracy",
        "metrics": dict.fromkeys(names, 0.25),
        "baselines": [{"name": "3 nearest neighbours", "metrics": dict.fromkeys(names, 0.5)}],
        "test_examples": 47,
        "best_step": 5,
        "labels": labels,
        "per_class": [{"label": n, "precision": 0.5, "recall": 0.5, "f1": 0.5, "count": 9} for n in labels],
        "confusion": [[101 + i * 5 + j for j in range(5)] for i in range(5)],
        "notes": [],
        "remark": "",
    }
    out = io.StringIO()
    show_result(
        Console(file=out, width=width, soft_wrap=True, force_terminal=terminal, color_system=None), result, details=True
    )
    shown = out.getvalue()
    assert "…" not in shown
    assert "3 nearest neighbours" in shown
    assert ("a wider terminal also shows" in shown) == (width == 60)
    row = next(line for line in shown.splitlines() if "111" in line)
    assert row.split() == [*(["3"] if terminal else []), "Switzerland", "111", "112", "113", "114", "115"]
