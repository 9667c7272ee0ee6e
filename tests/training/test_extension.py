"""Extension of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import KilledError, experiment, same, settings, stop_at, untimed, without_times
from small import trainer as small_trainer

from attnlab.files.atomic import UNFINISHED
from attnlab.training import train
from attnlab.training.checkpoint import load_tensors
from attnlab.training.extension import check_extension, extend, extends, extension_summary, stopped_at
from attnlab.training.loop import Outcome
from attnlab.training.runs import Run
from attnlab.training.schedule import lr_at
from attnlab.utils.errors import UserError

STEPS, LONGER = 23, 41


def resumed(path: Path, callback: Any = None, **changes: Any) -> tuple[Outcome, dict[str, Any] | None]:
    return train.train(experiment(**changes), Run.open(path), resume=True, checkpoint_seconds=0, callback=callback)


def config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 23 steps with its result, read-only."""
    path = tmp_path_factory.mktemp("finished") / "run"
    ready = experiment()
    train.train(ready, train.start(ready, path), checkpoint_seconds=0)
    return path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_a_finished_run_is_extended(copied: Path) -> None:
    before = Run.open(copied)
    outcome, result = resumed(copied, steps=LONGER)
    after = Run.open(copied)
    assert (outcome.how, outcome.step) == ("finished", LONGER)
    assert result is not None
    assert (result["steps"], result["config"]) == (LONGER, after.config["sha256"])
    assert after.result() == result
    assert after.settings.training.steps == LONGER
    assert after.config["id"] == before.config["id"] != after.config["sha256"] != before.config["sha256"]
    assert after.config["extended"] == [{"from_step": STEPS, "steps_before": STEPS, "steps": LONGER}]


def test_learning_rate_follows_the_extended_schedule(copied: Path) -> None:
    kept = Run.open(copied).metrics()
    resumed(copied, steps=LONGER)
    lines = Run.open(copied).metrics()
    assert untimed(lines[: len(kept)]) == untimed(kept), "what was trained before stays as it was"
    how = settings(steps=LONGER).training
    for line in lines[len(kept) :]:
        assert line["learning_rate"] == lr_at(line["step"] - 1, LONGER, how.learning_rate, how.warmup)


def test_stopped_run_is_extended_from_its_last_step(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        small_trainer(tmp_path / "run").fit(stop_at(11))
    assert stopped_at(Run.open(tmp_path / "run")) == 10
    outcome, _ = resumed(tmp_path / "run", steps=LONGER)
    assert outcome.step == LONGER
    assert Run.open(tmp_path / "run").config["extended"][0]["from_step"] == 10


def test_extension_before_the_first_checkpoint_equals_a_longer_run(tmp_path: Path) -> None:
    for name, steps in (("short", STEPS), ("long", LONGER)):
        train.start(experiment(steps=steps), tmp_path / name)
        resumed(tmp_path / name, steps=LONGER)
    assert same(Run.open(tmp_path / "short").load_model(), Run.open(tmp_path / "long").load_model())


def test_extended_run_resumes_bit_for_bit(copied: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(copied, tmp_path / "whole"))
    resumed(whole, steps=LONGER)
    for at in (26, 31):
        with pytest.raises(KilledError):
            resumed(copied, stop_at(at), steps=LONGER)
        assert Run.open(copied).result() is None, "the result of the shorter run does not count"
    resumed(copied, steps=LONGER)
    assert len(Run.open(copied).config["extended"]) == 1, "resuming does not extend it again"
    for name in ("model", "state"):
        one, two = (load_tensors(path / f"{name}.safetensors")[0] for path in (whole, copied))
        assert same(one, two)
    assert untimed(Run.open(copied).metrics()) == untimed(Run.open(whole).metrics())
    one, two = (Run.open(path).result() or {} for path in (whole, copied))
    assert without_times({**one, "run": ""}) == without_times({**two, "run": ""})


def test_twice_extended(finished: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / "a run"))
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
    assert [(e["from_step"], e["steps_before"], e["steps"]) for e in run.config["extended"]] == [
        (STEPS, STEPS, 29),
        (29, 29, LONGER),
    ]
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
    outcome, _ = resumed(copied, steps=LONGER)
    assert outcome.step == LONGER


def test_extension_killed_after_writing_the_config_resumes(copied: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(copied, tmp_path / "whole"))
    resumed(whole, steps=LONGER)
    extend(Run.open(copied), settings(steps=LONGER))  # and no more: the process is gone
    run = Run.open(copied)
    assert run.result() is None
    assert same(run.load_model(), Run.open(tmp_path / "copied").load_model())
    resumed(copied, steps=LONGER)
    assert same(Run.open(copied).load_model(), Run.open(whole).load_model())


def test_epochs_are_extended_by_epochs(tmp_path: Path) -> None:
    ready = experiment(epochs=2)
    run = train.start(ready, tmp_path / "run")
    train.train(ready, run)
    assert not extends(run, settings(epochs=2))
    assert extends(run, settings(epochs=3))
    with pytest.raises(UserError, match=r"is trained by epochs \(epochs=2\); extend it with --epochs, not --steps"):
        extends(run, settings(steps=99))
    assert extension_summary(run, settings(epochs=3), 5) == (
        "epochs 2 to 3, from step 10 on; the learning rate rises again, from 0 to 0.00028"
    )
    _, result = resumed(tmp_path / "run", epochs=3)
    assert result is not None
    assert result["steps"] == 15
    assert Run.open(tmp_path / "run").config["extended"] == [{"from_step": 10, "epochs_before": 2, "epochs": 3}]


def test_shorter_training_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"trained for steps=23 and has reached its end, step 23, so it cannot .* 22; give"
    ):
        extends(Run.open(finished), settings(steps=22))
    with pytest.raises(KilledError):
        small_trainer(tmp_path / "run").fit(stop_at(11))
    with pytest.raises(UserError, match=r"trained for steps=23 and has reached step 10, so it cannot be trained for 3"):
        extends(Run.open(tmp_path / "run"), settings(steps=3))


def test_run_out_of_patience_is_not_extended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("attnlab.training.loop.evaluate", lambda *_, **__: (1.0, 0.3))
    small_trainer(tmp_path / "run", patience=3).fit()
    run = Run.open(tmp_path / "run")
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(UserError, match=r"its last 3 evaluations, up to step 4, did not improve.* --init_from"):
        check_extension(run)
    with pytest.raises(UserError, match=r"is out of patience"):
        extend(run, settings(steps=LONGER, patience=3))
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_patience_continues_after_a_resume(copied: Path) -> None:
    evals_since_best = load_tensors(copied / "state.safetensors")[1]["waited"]
    extend(Run.open(copied), settings(steps=LONGER))
    again = small_trainer(copied, steps=LONGER)
    assert (again.step, again.evals_since_best, again.steps) == (STEPS, evals_since_best, LONGER)
    assert again.best == load_tensors(copied / "state.safetensors")[1]["best"]


def test_config_of_an_extended_run_is_validated(copied: Path) -> None:
    extend(Run.open(copied), settings(steps=LONGER))
    altered = {**config(copied), "id": "0" * 64}
    (copied / "config.json").write_text(json.dumps(altered), encoding="utf-8")
    with pytest.raises(UserError, match=r"its checksum does not match"):
        Run.open(copied)
