"""Extension of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import KilledError, experiment, lines, refused, same, settings, stop_at, without_times
from small import trainer as small_trainer

from attnlab.files.atomic import UNFINISHED
from attnlab.training import train
from attnlab.training.checkpoint import load_tensors
from attnlab.training.extension import check_extension, extend, extends, extension_summary, stopped_at
from attnlab.training.loop import Outcome
from attnlab.training.runs import Run
from attnlab.training.schedule import lr_at

STEPS, LONGER = 23, 41
pytestmark = pytest.mark.usefixtures("no_curve")


def resumed(path: Path, callback: Any = None, **changes: Any) -> tuple[Outcome, dict[str, Any] | None]:
    return train.train(experiment(**changes), Run.open(path), resume=True, checkpoint_seconds=0, callback=callback)


@pytest.fixture(scope="module")
def extended(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was extended, read-only."""
    path = Path(shutil.copytree(done, tmp_path_factory.mktemp("extended") / "run"))
    outcome, result = resumed(path, steps=LONGER)
    assert (outcome.how, outcome.step) == ("finished", LONGER)
    assert result == Run.open(path).result()
    return path


def test_a_finished_run_is_extended(done: Path, extended: Path) -> None:
    before, after = Run.open(done), Run.open(extended)
    result = after.result()
    assert result is not None
    assert (result["steps"], result["config"]) == (LONGER, after.config["sha256"])
    assert after.settings.training.steps == LONGER
    assert after.config["id"] == before.config["id"] != after.config["sha256"] != before.config["sha256"]
    assert after.config["extended"] == [{"from_step": STEPS, "steps_before": STEPS, "steps": LONGER}]
    assert lines(extended)[:STEPS] == lines(done), "what was trained before stays as it was"
    how = settings(steps=LONGER).training
    for line in lines(extended)[STEPS:]:
        assert line["learning_rate"] == lr_at(line["step"] - 1, LONGER, how.learning_rate, how.warmup)


def test_stopped_run_is_extended_from_its_last_step(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        small_trainer(tmp_path / "run").fit(stop_at(11))
    run = Run.open(tmp_path / "run")
    assert stopped_at(run) == 10
    refused(
        "is trained for steps=23 and has reached step 10, so it cannot be trained for 3",
        extends,
        run,
        settings(steps=3),
    )
    assert resumed(run.path, steps=LONGER)[0].step == LONGER
    assert Run.open(run.path).config["extended"][0]["from_step"] == 10


def test_extension_before_the_first_checkpoint_equals_a_longer_run(tmp_path: Path) -> None:
    for name, steps in (("short", STEPS), ("long", LONGER)):
        train.start(experiment(steps=steps), tmp_path / name)
        resumed(tmp_path / name, steps=LONGER)
    assert same(Run.open(tmp_path / "short").load_model(), Run.open(tmp_path / "long").load_model())


@pytest.mark.parametrize("written", [True, False])
def test_extended_run_resumes_bit_for_bit(written: bool, extended: Path, copied: Path) -> None:
    """Also if the process was killed right after ``written`` config.json."""
    if written:
        best = Run.open(copied).load_model()
        extend(Run.open(copied), settings(steps=LONGER))
        assert same(Run.open(copied).load_model(), best)
    for at in (26, 31):
        with pytest.raises(KilledError):
            resumed(copied, stop_at(at), steps=LONGER)
        assert Run.open(copied).result() is None, "the result of the shorter run does not count"
    resumed(copied, steps=LONGER)
    assert len(Run.open(copied).config["extended"]) == 1, "resuming does not extend it again"
    for name in ("model.safetensors", "state.safetensors"):
        assert same(load_tensors(extended / name)[0], load_tensors(copied / name)[0])
    assert lines(copied) == lines(extended)
    one, two = (Run.open(path).result() or {} for path in (extended, copied))
    assert without_times({**one, "run": ""}) == without_times({**two, "run": ""})


def test_twice_extended(done: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(done, tmp_path / "a run"))
    resumed(copied, steps=29)
    resumed(copied, steps=LONGER)
    run = Run.open(copied)
    report = (copied / "report.md").read_text("utf-8")
    start, *more = report.split("```sh\n")[1].split("\n```")[0].split("\n")
    assert f"--steps {STEPS}" in start, "the length that it was started with"
    assert more == [
        f"# at step {STEPS}:",
        f"attnlab train --resume '{copied}' --steps 29",
        "# at step 29:",
        f"attnlab train --resume '{copied}' --steps {LONGER}",
    ]
    assert [list(entry.values()) for entry in run.config["extended"]] == [[STEPS, STEPS, 29], [29, 29, LONGER]]
    assert run.result() is not None


def test_extension_killed_before_writing_the_config_keeps_the_result(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in copied.iterdir()}

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            resumed(copied, steps=LONGER)
    assert {p.name: p.read_bytes() for p in copied.iterdir() if not p.name.startswith(UNFINISHED)} == before
    assert Run.open(copied).result() is not None
    assert resumed(copied, steps=LONGER)[0].step == LONGER


def test_epochs_are_extended_by_epochs(tmp_path: Path) -> None:
    ready = experiment(epochs=2)
    run = train.start(ready, tmp_path / "run")
    train.train(ready, run)
    assert not extends(run, settings(epochs=2))
    assert extends(run, settings(epochs=3))
    message = "is trained by epochs (epochs=2); extend it with --epochs, not --steps"
    refused(message, extends, run, settings(steps=99))
    assert extension_summary(run, settings(epochs=3), 5) == (
        "epochs 2 to 3, from step 10 on; the learning rate rises again, from 0 to 0.00028"
    )
    _, result = resumed(tmp_path / "run", epochs=3)
    assert result is not None
    assert result["steps"] == 15
    assert Run.open(tmp_path / "run").config["extended"] == [{"from_step": 10, "epochs_before": 2, "epochs": 3}]


def test_shorter_training_is_refused(done: Path) -> None:
    message = "is trained for steps=23 and has reached its end, step 23, so it cannot be trained for 22; give"
    refused(message, extends, Run.open(done), settings(steps=22))


def test_run_out_of_patience_is_not_extended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("attnlab.training.loop.evaluate", lambda *_, **__: (1.0, 0.3))
    small_trainer(tmp_path / "run", patience=3).fit()
    run = Run.open(tmp_path / "run")
    before = (tmp_path / "run/config.json").read_bytes()
    message = "its last 3 evaluations, up to step 4, did not improve, so it would stop immediately; start a new run"
    refused(message, check_extension, run)
    refused(message, extend, run, settings(steps=LONGER, patience=3))
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_patience_continues_after_a_resume(copied: Path) -> None:
    about = load_tensors(copied / "state.safetensors")[1]
    extend(Run.open(copied), settings(steps=LONGER))
    again = small_trainer(copied, steps=LONGER)
    assert (again.step, again.steps) == (STEPS, LONGER)
    assert (again.evals_since_best, again.best) == (about["waited"], about["best"])


def test_config_of_an_extended_run_is_validated(copied: Path) -> None:
    extend(Run.open(copied), settings(steps=LONGER))
    config = json.loads((copied / "config.json").read_text("utf-8"))
    (copied / "config.json").write_text(json.dumps({**config, "id": "0" * 64}), encoding="utf-8")
    refused("its checksum does not match", Run.open, copied)
