"""``attnlab runs``, and ``attnlab train`` with ``--resume`` and ``--init_from``."""

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
from calls import call, contents_of, error_of, write_files

from attnlab.training.checkpoint import load_tensors
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run

SMALL = ("train", "--embed_dim", "8", "--layers", "1", "--quiet")
MINE = (*SMALL, "--model", "multihead", "--num_heads", "2", "--data", "mine.csv", "--target", "way")
ROWS = "".join(f"{i % 7}.5,{i % 5},{'xyz'[i % 3]}\n" for i in range(89))


def trained(*words: str, run: str) -> None:
    done = call(*words, "--run_dir", run)
    assert done.code == 0, done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and four runs; only to be read."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):  # the data are the same for all copies
        write_files(folder, {"mine.csv": "a,b,way\n" + ROWS})
        trained(*MINE, "--steps", "5", run="runs/one")
        trained(*MINE, "--steps", "5", "--seed", "3", "--learning_rate", "0.01", run="runs/two[lr=0.01]")
        trained(*SMALL, "--model", "selfhead", "--data", "mine.csv", "--target", "way", "--steps", "7", run="runs/self")
        trained(*MINE, "--epochs", "2", "--patience", "1", "--learning_rate", "1e-9", run="runs/plateau")
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, where the command runs."""
    shutil.copytree(made, ".", dirs_exist_ok=True)
    return Path.cwd()


def listed(*words: str) -> dict[str, dict[str, Any]]:
    done = call("runs", *words, "--json")
    assert (done.code, done.err) == (0, "")
    return {Path(row["run"]).name: row for row in json.loads(done.out)}


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


def terminal(width: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """The lines of a command on a terminal of a width, without colours."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take its output for a terminal
    done = call(*words)
    assert done.code == 0, done
    return re.sub(r"\x1b\[[0-9;]*m", "", done.out).splitlines()


# The listing


def test_a_row_shows_model_data_settings_and_status(here: Path, made: Path) -> None:
    rows = listed()
    assert list(rows) == ["one", "plateau", "self", "two[lr=0.01]"]
    assert {row["data"] for row in rows.values()} == {str(made / "mine.csv")}
    assert [row["seed"] for row in rows.values()] == [0, 0, 0, 3]
    assert [row["status"] for row in rows.values()] == ["finished", "early", "finished", "finished"]
    assert rows["two[lr=0.01]"]["settings"] == {
        "patience": None,
        "learning_rate": 0.01,
        "epochs": None,
        "steps": 5,
    }
    assert rows["self"]["settings"]["steps"] == 7
    assert "num_heads" not in rows["one"]["settings"], "the runs that have it agree"
    out = call("runs").out
    line = next(line for line in out.splitlines() if "two[lr" in line)
    for cell in ("runs/two[lr=0.01]", "multihead", "mine.csv", " 3 ", "learning_rate=0.01", "steps=5", "finished"):
        assert cell in line
    assert "None" not in out


def test_a_pipe_gets_one_line_per_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = call("runs").out.splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines] == ["run", *(f"runs/{name}" for name in listed())]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_gets_lines_that_fit(width: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = terminal(width, monkeypatch, "runs")
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for word in ("runs/two[lr=0.01]", "learning_rate=0.01", "accuracy", "early", "mine.csv"):
        assert word in text
    assert (len(lines) == 5) == (width == 200)
    if width < 200:
        assert lines[:2] == ["runs/one", "  multihead on mine.csv, seed 0, step 5"]


def test_the_step_is_that_of_the_stop_message(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_at(11, monkeypatch):
        done = call(*MINE, "--steps", "40", "--run_dir", "runs/cut")
    assert done.code == 130
    step = int(re.match(r"stopped at step (\d+) of 40;", done.err)[1])  # type: ignore[index]
    row = listed()["cut"]
    assert (row["status"], row["step"], row["test"]) == ("stopped", step, None)
    with Run.open(Path("runs/cut")).alone():
        assert listed()["cut"]["status"] == "running"
        assert listed()["one"]["status"] == "finished"
    assert listed()["cut"]["status"] == "stopped"


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
    assert list(rows) == ["one", "plateau", "self", "two[lr=0.01]"]
    assert rows["one"]["status"] == "damaged"
    assert reason in rows["one"]["reason"]
    assert [row["status"] for row in rows.values()][1:] == ["early", "finished", "finished"]
    done = call("runs")
    assert done.code == 0
    assert re.search(r"^runs/one +damaged", done.out, re.MULTILINE)
    assert f"damaged: runs/one{'/' if name in reason.split()[0] else ' '}{reason}" in done.out


def test_a_folder_without_runs(here: Path) -> None:
    Path("empty").mkdir()
    assert call("runs", "empty").out == "no runs in empty; attnlab train creates one\n"
    assert "none is not a folder; give the folder that contains the runs" in error_of("runs", "none")


# Comparing two


def compared(a: str, b: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("runs", "diff", a, b, "--json").out)
    return found


def test_differences_between_two_runs(here: Path) -> None:
    found = compared("runs/one", "runs/two[lr=0.01]")
    assert found["settings"] == {"learning_rate": [1e-3, 0.01], "seed": [0, 3]}
    assert found["data"] == found["versions"] == {}
    results = [Run.open(Path(f"runs/{name}")).result() for name in ("one", "two[lr=0.01]")]
    for name, values in found["results"].items():
        if name == "test accuracy":
            assert values == [result["test"] for result in results if result]
        elif not name.startswith("test "):
            assert values == [result[name] for result in results if result]
    out = call("runs", "diff", "runs/one", "runs/two[lr=0.01]").out
    assert re.search(r"^ +runs/one +runs/two\[lr=0\.01\]\s*$", out, re.MULTILINE)
    assert re.search(r"^  learning_rate +0\.001 +0\.01\s*$", out, re.MULTILINE)
    assert "embed_dim" not in out


def test_differing_models_and_data(here: Path, made: Path) -> None:
    write_files(here, {"other.csv": "a,b,way\n" + ROWS[: len(ROWS) // 2 * 2]})
    trained(*SMALL, "--model", "selfhead", "--data", "other.csv", "--target", "way", "--steps", "5", run="runs/third")
    found = compared("runs/one", "runs/third")
    assert found["settings"]["model"] == ["multihead", "selfhead"]
    assert found["settings"]["num_heads"] == [2, None]
    assert found["settings"]["data"] == [str(made / "mine.csv"), str(here / "other.csv")]
    assert re.search(
        r"^  data +\S+/mine\.csv +other\.csv\s*$", call("runs", "diff", "runs/one", "runs/third").out, re.M
    )


def test_changed_data_of_the_same_name_differ(here: Path) -> None:
    trained(*MINE, "--steps", "5", run="runs/before")
    write_files(here, {"mine.csv": "a,b,way\n" + ROWS + "1.5,2,x\n"})
    trained(*MINE, "--steps", "5", run="runs/later")
    found = compared("runs/before", "runs/later")
    assert found["settings"] == {}
    one, other = found["data"]["data_sha256"]
    assert len(one) == len(other) == 64
    assert one != other
    assert f"  {one[:12]}  {other[:12]}" in call("runs", "diff", "runs/before", "runs/later").out


def test_a_run_without_a_result_is_compared_by_its_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_at(11, monkeypatch):
        call(*MINE, "--steps", "40", "--run_dir", "runs/cut")
    found = compared("runs/one", "runs/cut")
    assert found["results"]["ended"] == ["finished", "stopped"]
    assert found["results"]["test accuracy"][1] is None


def test_a_run_does_not_differ_from_itself(here: Path) -> None:
    assert call("runs", "diff", "runs/one", "./runs/one").out == "runs/one and runs/one do not differ\n"


def test_a_folder_called_diff_can_be_listed(here: Path) -> None:
    Path("runs").rename("diff")
    assert list(listed("./diff")) == ["one", "plateau", "self", "two[lr=0.01]"]
    assert "to list a folder called diff, write ./diff" in error_of("runs", "diff")
    assert "B is missing" in error_of("runs", "diff", "diff/one")
    assert "none is no run folder" in error_of("runs", "diff", "diff/one", "none")


# A run from elsewhere, and how it ended


def test_a_run_trained_with_a_relative_path_is_evaluated_from_elsewhere(here: Path) -> None:
    elsewhere = here.parent / "elsewhere"
    elsewhere.mkdir()
    with contextlib.chdir(elsewhere):
        done = call("evaluate", str(here / "runs/one"), "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["test"] == listed(str(here / "runs"))["one"]["test"]


def test_the_report_names_the_data_absolutely_and_quoted(here: Path) -> None:
    shutil.copy("mine.csv", "my data.csv")
    words = [word.replace("mine.csv", "my data.csv") for word in MINE]
    trained(*words, "--steps", "5", run="spaced")
    assert f"--data '{here / 'my data.csv'}'" in Path("spaced/report.md").read_text("utf-8")
    assert call("train", "--resume", "spaced", "--data", "my data.csv").code == 0, "the same file as before"
    Path("other.csv").write_text("a,b,way\n1,2,up\n", encoding="utf-8")
    assert "other.csv was altered since" in error_of("train", "--resume", "spaced", "--data", "other.csv")


def test_evaluate_shows_how_training_ended(here: Path) -> None:
    assert "training finished)" in call("evaluate", "runs/one").out
    assert "training stopped early)" in call("evaluate", "runs/plateau").out
    assert json.loads(call("evaluate", "runs/plateau", "--json").out)["ended"] == "early"
    Path("runs/plateau/result.json").unlink()
    done = call("evaluate", "runs/plateau")
    assert "training has not finished)" in done.out
    assert "seen once" not in done.out
    assert json.loads(call("evaluate", "runs/plateau", "--json").out)["ended"] == "unfinished"


# Longer, and from other weights


def test_a_finished_run_is_extended(here: Path) -> None:
    done = call("train", "--resume", "runs/one", "--steps", "9")
    assert done.code == 0, done
    assert "  extended  steps 5 to 9, from step 5 on; the learning rate rises again, from 0 to 0.0005\n" in done.out
    assert listed()["one"]["step"] == 9
    again = call("train", "--resume", "runs/one", "--steps", "9")
    assert again.code == 0
    assert "runs/one has already finished" in again.out


def test_an_extended_run_can_be_stopped_and_resumed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("runs/one", "runs/whole")
    assert call("train", "--resume", "runs/whole", "--steps", "29", "--quiet").code == 0
    with stopped_at(11, monkeypatch):
        done = call("train", "--resume", "runs/one", "--steps", "29", "--quiet")
    assert done.code == 130
    assert re.match(r"stopped at step \d+ of 29; resume with: .* --resume runs/one", done.err)
    assert listed()["one"]["status"] == "stopped"
    assert call("train", "--resume", "runs/one", "--quiet").code == 0
    one, whole = (load_tensors(Path(f"runs/{name}/model.safetensors"))[0] for name in ("one", "whole"))
    assert all(one[name].equal(whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs/one --steps 4", "trained for steps=5 and has reached its end, step 5, so it cannot be trained for 4"),
        ("runs/one --epochs 9", "is trained by steps (steps=5); extend it with --steps, not --epochs"),
        ("runs/one --steps 9 --learning_rate 1", "was started with learning_rate=0.001, so it cannot resume with 1.0"),
        ("runs/one --steps 1000000000", "steps must be from 1 to 100,000,000, not 1000000000"),
        ("runs/one --steps 9 --epochs 9", "--epochs and --steps both set the length of the run; give one of them"),
        ("runs/plateau --epochs 9", "is out of patience: its last 1 evaluations"),
    ],
)
def test_invalid_extensions(words: str, message: str, here: Path) -> None:
    assert message in error_of("train", "--resume", *words.split())


def test_a_run_starts_from_the_parameters_of_another(here: Path) -> None:
    words = [word for word in MINE if word != "--quiet"]
    done = call(*words, "--steps", "5", "--init_from", "runs/one", "--run_dir", "runs/from")
    assert done.code == 0, done
    assert "starts from the parameters of runs/one" in done.out.split("step ")[0]
    run = Run.open(Path("runs/from"))
    assert run.config["settings"]["init_from"] == str(here / "runs/one")
    assert f"--init_from {here / 'runs/one'}" in Path("runs/from/report.md").read_text("utf-8")
    shutil.rmtree("runs/one")
    assert call("evaluate", "runs/from").code == 0
    assert call("train", "--resume", "runs/from", "--steps", "7", "--quiet").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init_from", "runs/self"), "holds a selfhead network, but the run trains multihead; give --model selfhead"),
        (("--init_from", "none"), "none is not there; give a run, or a file written by --save_path"),
        (("--init_from", "mine.csv"), "mine.csv is truncated or not a checkpoint"),
        (("--init_from", "runs/one", "--layers", "2"), "blocks.1.norm1.weight is missing there and (8,) here"),
    ],
)
def test_invalid_initial_parameters(words: tuple[str, ...], message: str, here: Path) -> None:
    assert message in error_of(*MINE, "--steps", "5", *words)


def test_listing_and_comparing_change_nothing(here: Path) -> None:
    before = contents_of(here)
    for words in (("runs",), ("runs", "diff", "runs/one", "runs/self"), ("runs", "--json")):
        assert call(*words).code == 0
    assert contents_of(here) == before
