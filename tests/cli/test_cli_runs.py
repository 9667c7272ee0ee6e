"""``attnlab runs``, and ``attnlab train`` with ``--resume`` and ``--init_from``; errors are in test_bad_input.py."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import ROWS, SMALL, TABLE, call, contents_of, error_of, output_of, trained, write_files

from attnlab.training.loop import Trainer
from attnlab.training.runs import Run

NAMES = ["one", "plateau", "self", "two[lr=0.01]"]


def listed(*words: str) -> dict[str, dict[str, Any]]:
    return {Path(row["run"]).name: row for row in json.loads(output_of("runs", *words, "--json"))}


def compared(a: str, b: str) -> dict[str, Any]:
    differences: dict[str, Any] = json.loads(output_of("runs", "diff", a, b, "--json"))
    return differences


@contextlib.contextmanager
def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every run is stopped by Ctrl-C after this step."""
    training_step = Trainer.training_step

    def stopping(trainer: Trainer) -> Any:
        loss = training_step(trainer)
        if trainer.run is not None and trainer.step == step:
            signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", stopping)
        yield


# The listing


def test_a_row_shows_model_data_settings_and_status(here: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = listed()
    assert list(rows) == NAMES
    assert {row["data"] for row in rows.values()} == {str(made / "mine.csv")}
    assert [row["seed"] for row in rows.values()] == [0, 0, 0, 3]
    assert [row["status"] for row in rows.values()] == ["finished", "early", "finished", "finished"]
    settings = {"patience": None, "learning_rate": 0.01, "epochs": None, "steps": 5}
    assert rows["two[lr=0.01]"]["settings"] == settings
    assert rows["self"]["settings"]["steps"] == 7
    assert "num_heads" not in rows["one"]["settings"], "the runs that have it agree"
    monkeypatch.setenv("COLUMNS", "40")
    lines = output_of("runs").splitlines()  # a pipe gets one line per run
    assert [line.split()[0] for line in lines] == ["run", *(f"runs/{name}" for name in NAMES)]
    for cell in ("runs/two[lr=0.01]", "multihead", "mine.csv", " 3 ", "learning_rate=0.01", "steps=5", "finished"):
        assert cell in lines[-1]
    assert not any("None" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_gets_lines_that_fit(width: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take its output for a terminal
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output_of("runs")).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for word in ("runs/two[lr=0.01]", "learning_rate=0.01", "accuracy", "early", "mine.csv"):
        assert word in text
    assert (len(lines) == 5) == (width == 200)
    if width < 200:
        assert lines[:2] == ["runs/one", "  multihead on mine.csv, seed 0, step 5"]


def test_a_stopped_run_is_listed_and_compared_by_its_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_at(11, monkeypatch):
        done = call(*SMALL, *TABLE, "--quiet", "--steps", "40", "--run_dir", "runs/cut")
    assert done.code == 130
    step = int(re.match(r"stopped at step (\d+) of 40;", done.err)[1])  # type: ignore[index]
    row = listed()["cut"]
    assert (row["status"], row["step"], row["test"]) == ("stopped", step, None)
    with Run.open(Path("runs/cut")).alone():
        assert (listed()["cut"]["status"], listed()["one"]["status"]) == ("running", "finished")
    assert listed()["cut"]["status"] == "stopped"
    results = compared("runs/one", "runs/cut")["results"]
    assert results["ended"] == ["finished", "stopped"]
    assert results["test accuracy"][1] is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "{", "config.json was not written by attnlab, or altered"),
        ("metrics.jsonl", '{"step"\n', "metrics.jsonl is damaged"),
        ("result.json", "[", "result.json is damaged"),
        ("state.safetensors", "cut", "state.safetensors is truncated or not a checkpoint"),
        ("state.safetensors", None, "lacks its state.safetensors"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(name: str, content: str | None, reason: str, here: Path) -> None:
    file = here / "runs/one" / name
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    rows = listed()
    assert list(rows) == NAMES
    assert [row["status"] for row in rows.values()] == ["damaged", "early", "finished", "finished"]
    assert reason in rows["one"]["reason"]
    out = output_of("runs")
    assert re.search(r"^runs/one +damaged", out, re.MULTILINE)
    assert f"damaged: runs/one{'/' if name in reason.split()[0] else ' '}{reason}" in out


def test_other_folders_of_runs(here: Path) -> None:
    Path("empty").mkdir()
    assert output_of("runs", "empty") == "no runs in empty; attnlab train creates one\n"
    Path("runs").rename("diff")
    assert list(listed("./diff")) == NAMES


# Comparing two


def test_differences_between_two_runs(here: Path) -> None:
    before = contents_of(here)
    differences = compared("runs/one", "runs/two[lr=0.01]")
    assert differences["settings"] == {"learning_rate": [1e-3, 0.01], "seed": [0, 3]}
    assert differences["data"] == differences["versions"] == {}
    results = [Run.open(Path(f"runs/{name}")).result() for name in ("one", "two[lr=0.01]")]
    for name, values in differences["results"].items():
        if name == "test accuracy":
            assert values == [result["test"] for result in results if result]
        elif not name.startswith("test "):
            assert values == [result[name] for result in results if result]
    out = output_of("runs", "diff", "runs/one", "runs/two[lr=0.01]")
    assert re.search(r"^ +runs/one +runs/two\[lr=0\.01\]\s*$", out, re.MULTILINE)
    assert re.search(r"^  learning_rate +0\.001 +0\.01\s*$", out, re.MULTILINE)
    assert "embed_dim" not in out
    assert output_of("runs", "diff", "runs/one", "./runs/one") == "runs/one and runs/one do not differ\n"
    assert contents_of(here) == before


def test_differing_models_and_data(here: Path, made: Path) -> None:
    write_files(here, {"other.csv": "a,b,way\n" + ROWS + "1.5,2,x\n"})
    trained("--model", "selfhead", "--data", "other.csv", "--target", "way", "--steps", "5", run="runs/third")
    differences = compared("runs/one", "runs/third")
    settings, (one, other) = differences["settings"], differences["data"]["data_sha256"]
    assert settings["model"] == ["multihead", "selfhead"]
    assert settings["num_heads"] == [2, None]
    assert settings["data"] == [str(made / "mine.csv"), str(here / "other.csv")]
    out = output_of("runs", "diff", "runs/one", "runs/third")
    assert re.search(r"^  data +\S+/mine\.csv +other\.csv\s*$", out, re.MULTILINE)
    assert one != other
    assert re.search(rf"^  data_sha256 +{one[:12]} +{other[:12]}\s*$", out, re.MULTILINE)


def test_a_run_trained_with_a_relative_path_is_evaluated_from_elsewhere(here: Path) -> None:
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        result = json.loads(output_of("evaluate", str(here / "runs/one"), "--json"))
        assert result["test"] == listed(str(here / "runs"))["one"]["test"]


def test_the_report_names_the_data_absolutely_and_quoted(here: Path) -> None:
    Path("mine.csv").rename("my data.csv")
    trained(*[word.replace("mine.csv", "my data.csv") for word in TABLE], "--steps", "5", run="spaced")
    assert f"--data '{here / 'my data.csv'}'" in Path("spaced/report.md").read_text("utf-8")
    output_of("train", "--resume", "spaced", "--data", "my data.csv")  # the same file as before
    Path("other.csv").write_text("a,b,way\n1,2,up\n", encoding="utf-8")
    assert "other.csv was altered since" in error_of("train", "--resume", "spaced", "--data", "other.csv")


def test_evaluate_shows_how_training_ended(here: Path) -> None:
    assert "training finished)" in output_of("evaluate", "runs/one")
    assert "training stopped early)" in output_of("evaluate", "runs/plateau")
    assert json.loads(output_of("evaluate", "runs/plateau", "--json"))["ended"] == "early"
    Path("runs/plateau/result.json").unlink()
    assert "training has not finished)" in output_of("evaluate", "runs/plateau")
    assert json.loads(output_of("evaluate", "runs/plateau", "--json"))["ended"] == "unfinished"


def test_a_finished_run_is_extended(here: Path) -> None:
    out = output_of("train", "--resume", "runs/one", "--steps", "9")
    assert "  extended  steps 5 to 9, from step 5 on; the learning rate rises again, from 0 to 0.0005\n" in out
    assert listed()["one"]["step"] == 9
    assert "runs/one has already finished" in output_of("train", "--resume", "runs/one", "--steps", "9")


def test_a_run_starts_from_the_parameters_of_another(here: Path) -> None:
    out = output_of(*SMALL, *TABLE, "--steps", "5", "--init_from", "runs/one", "--run_dir", "runs/from")
    assert "starts from the parameters of runs/one" in out.split("step ")[0]
    assert Run.open(Path("runs/from")).config["settings"]["init_from"] == str(here / "runs/one")
    assert f"--init_from {here / 'runs/one'}" in Path("runs/from/report.md").read_text("utf-8")
    shutil.rmtree("runs/one")  # needed at the start only
    output_of("train", "--resume", "runs/from", "--steps", "7", "--quiet")
