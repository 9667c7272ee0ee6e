"""`attnlab compare` and `attnlab claims`: what they print, what they refuse, and how they stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calls import call

from attnlab.cli._comparison import _check_folder, _learning_rates, _seeds, _sweeps
from attnlab.comparison.plan import Sweep
from attnlab.training.settings import Settings

FLAGS = {"task": "induction", "steps": 3, "batch_size": 5, "embed_dim": 8, "layers": 1, "num_heads": 2, "lr": 0.01}
SMALL = [*(word for flag, value in FLAGS.items() for word in (f"--{flag}", str(value))), "--seeds=2", "--no_costs"]

REFUSED = {
    "": "--models is missing",
    "--models multihead,linnear": "unknown model 'linnear'; did you mean linear?",
    "--models multihead,multihead": "is in the list of models twice",
    "--models multihead --seeds none": "--seeds must be their number, or seeds separated by commas",
    "--models multihead --seeds 0": "--seeds must be from 1 to 1,000, not 0",
    "--models multihead --seeds 3,3": "--seeds names a seed twice: 3,3",
    "--models multihead --lr fast": "--lr must be sweep, default, or numbers separated by commas; not 'fast'",
    "--models multihead --lr 0.1,0.1": "--lr must have different numbers",
    "--models multihead --lr nan": "--lr must have different numbers from 1e-12 to 100",
    "--models multihead --sweep pairs": "--sweep must be NAME=VALUE,VALUE such as pairs=4,8,16, not 'pairs'",
    "--models multihead --sweep pairs=": "--sweep must be NAME=VALUE,VALUE",
    "--models multihead --sweep pairs=4,4": "--sweep pairs=4,4 has a value twice",
    "--models multihead --sweep seed=1,2": "--sweep cannot change seed; give --seeds",
    "--models multihead --sweep pairs=4 pairs=8": "--sweep pairs is given twice",
    "--models multihead --sweep wideness=4,8": "unknown setting 'wideness'",
    "--models multihead --task digits --sweep pairs=4,8": "digits has no key-value pairs to choose the number of",
    "--models multihead --seed 3": "compare does not take --seed; give --seeds",
    "--models multihead --run_dir here": "compare does not take --run_dir; give --output",
    "--models multihead --save_path a.pt": "compare does not take --save_path, which is for a single run",
    "--models multihead --learning_rate 0.1": "compare does not take --learning_rate; give --lr",
    "--models multihead --task digits --sweep metric=accuracy,f1": "cannot change the metric (accuracy and f1)",
    "--models multihead --threads 4": "compare does not take --threads; give --jobs",
    "--models multihead --jobs 0": "--jobs must be at least 1, not 0",
    "--models multihead --baseline linear": "--baseline linear is not among the models: multihead",
    "--models multihead,linear --window_size 4": "multihead has no option window_size; models that have it:",
    "--models multihead --budget money": "--budget must be one of params, time, flops, none, not 'money'",
    "--models multihead --data missing.csv": "--data missing.csv does not exist",
    "--models linformer --task induction": "induction needs causal attention, which linformer does not support",
    "--models multihead --output calls.py": "--output calls.py is a file; give a folder",
    "--models multihead --output full": "--output full holds other, which no comparison wrote; give another folder",
}


@pytest.mark.parametrize("line", REFUSED)
def test_wrong_input_is_refused_in_one_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.py").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    before = sorted(tmp_path.rglob("*"))
    result = call("compare", *line.split())
    assert result.code == 2
    assert REFUSED[line] in result.err
    assert result.err.count("\n") == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


def test_seeds_rates_and_sweeps() -> None:
    assert _seeds("3") == [0, 1, 2]
    assert _seeds("7, 9") == [7, 9]
    settings = Settings()
    settings.training.learning_rate = 3e-3
    assert _learning_rates("sweep", settings) == [1e-3, 3e-3, 9e-3]
    assert _learning_rates("default", settings) == []
    assert _learning_rates("1e-2", settings) == [1e-2]
    assert _sweeps(["--pairs=4,8", "noise=0.5,1", "mlp=yes,no"]) == [
        Sweep("pairs", (4, 8)),
        Sweep("noise", (0.5, 1)),
        Sweep("mlp", (True, False)),
    ]


def test_files_of_a_process_that_was_killed_are_no_reason_to_refuse(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    folder.mkdir()
    (folder / ".attnlab-1.json").touch()
    _check_folder(folder)


@pytest.mark.slow
def test_a_comparison_prints_its_verdict_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compare", "--models", "multihead,longformer", *SMALL, "--window_size", "4"]
    first = call(*command)
    assert first.code == 0, first.err
    assert "comparing: 4 runs" in first.out
    assert "Which of multihead, longformer has the highest accuracy on induction?" in first.out
    folder = next((tmp_path / "comparisons").iterdir())
    assert {"report.html", "report.md", "results.json", "results.csv", "pictures", "runs"} == {
        entry.name for entry in folder.iterdir()
    }
    settings = [json.loads(file.read_text())["settings"] for file in folder.glob("runs/*/config.json")]
    assert {each.get("window_size") for each in settings} == {None, 4}
    again = call(*command, "--json")
    assert again.out.count("\n") == 1
    made = json.loads(again.out)
    assert made["verdict"] in first.out
    assert call(*command).out.count("finished earlier") == 4
    quiet = call(*command, "--quiet")
    assert quiet.out.strip().replace("\n", " ") == made["verdict"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_stops_a_comparison_that_the_same_command_resumes(tmp_path: Path) -> None:
    long = ["--steps" if word == "--steps" else "100000" if word == "3" else word for word in SMALL]
    command = [sys.executable, "-m", "attnlab", "compare", "--models", "multihead", *long, "--jobs", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "comparisons"
    while not any(runs.glob("*/runs/*/state.safetensors")):  # the first checkpoint is written before the first step
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert "stopped; the same command resumes the comparison in comparisons/induction-" in err
    assert "Traceback" not in err
    assert not any(runs.glob("*/results.json"))
    assert any(runs.glob("*/runs/*/state.safetensors"))
