"""Whole comparisons: results, resuming, sweeps, learning rates, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnlab.comparison import budget, run
from attnlab.comparison.execute import one_by_one
from attnlab.comparison.plan import TUNING_SEED, Case, Sweep, Trial, cases_of
from attnlab.comparison.results import CostRecord
from attnlab.comparison.run import (
    Progress,
    Question,
    _capacities,
    _case_record,
    _Comparison,
    _matched,
    _with_costs,
    compare,
)
from attnlab.comparison.trial import Outcome
from attnlab.network import Network
from attnlab.tasks.base import TaskData
from attnlab.training.loop import Trainer
from attnlab.utils.errors import UserError
from tests.comparison.small import question, settings


class Log:
    """Which trials were trained, and which were found finished."""

    def __init__(self) -> None:
        self.trained: list[Trial] = []
        self.reused: list[Trial] = []

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        (self.reused if outcome.reused else self.trained).append(trial)

    @property
    def progress(self) -> Progress:
        return Progress(ended=self.ended)


@pytest.mark.slow
def test_a_comparison_is_extended_without_training_again(tmp_path: Path) -> None:
    first = question("multihead", "linear")
    before = compare(first, tmp_path, one_by_one)
    assert {(trial.label, trial.seed) for trial in before.trials} == {
        (model, seed) for model in ("multihead", "linear") for seed in (0, 1)
    }
    case = before.at(None)[0]
    assert case.quality is not None
    tests = [trial.test for trial in before.trials if trial.label == case.label]
    assert case.quality.mean == pytest.approx(sum(test or 0 for test in tests) / 2)
    assert all(trial.curve for trial in before.trials)

    log = Log()
    more = replace(first, seeds=(0, 1, 2), models={**first.models, "retention": settings("retention")})
    after = compare(more, tmp_path, one_by_one, log.progress)
    assert {(trial.case.model, trial.seed) for trial in log.reused} == {
        (model, seed) for model in ("multihead", "linear") for seed in (0, 1)
    }
    assert len(log.trained) == 5
    kept = {trial.run: trial for trial in after.trials}
    assert all(kept[trial.run].test == trial.test for trial in before.trials)


@pytest.mark.slow
def test_learning_rates_are_chosen_on_validation_data(tmp_path: Path) -> None:
    asked = question("multihead", "linear", learning_rates=(1e-9, 0.03))
    made = compare(replace(asked, models={m: settings(m, steps=40) for m in asked.models}), tmp_path, one_by_one)
    tuning = [trial for trial in made.trials if trial.tuning]
    assert {trial.seed for trial in tuning} == {TUNING_SEED}
    assert len(tuning) == 4
    for case in made.cases:
        best = max(case.tried, key=lambda rate: case.tried[rate] or 0)
        assert case.learning_rate == float(best)
    assert any("smallest or the largest" in line for line in made.limits)
    assert sorted(path.name for path in (tmp_path / "runs").glob(f"*seed{TUNING_SEED}*"))


@pytest.mark.slow
def test_points_of_a_longer_test_share_their_network(tmp_path: Path) -> None:
    asked = question("multihead", sweeps=(Sweep("test_length", (32, 64)),))
    log = Log()
    made = compare(asked, tmp_path, one_by_one, log.progress)
    assert len(log.trained) == 2  # one for each seed
    assert [case.point for case in made.cases] == [32, 64]
    qualities = [case.quality.mean for case in made.cases if case.quality]
    assert len(set(qualities)) == 2
    (found,) = made.capacities
    assert (found.label, found.below) == ("multihead", 2)
    assert len({case.parameters for case in made.cases}) == 1  # the positions of the longest
    assert {each.point for each in made.baselines} == {64}  # the test data of the runs' own results
    for file in tmp_path.glob("tests/*.json"):
        file.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"tests/.* is damaged \('32'\)"):
        compare(asked, tmp_path, one_by_one)


@pytest.mark.slow
def test_the_same_seed_gives_every_mechanism_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[torch.Tensor] = []
    rows = Trainer._rows
    monkeypatch.setattr(Trainer, "_rows", lambda self: batches.append(rows(self)) or batches[-1])
    compare(question("multihead", "linear"), tmp_path, one_by_one)
    first, second = torch.stack(batches).unflatten(0, (2, 2, 3))  # mechanism, seed, step
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.slow
def test_a_failed_run_is_reported_and_its_mechanism_not_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.training_step

    def fail(self: Trainer) -> torch.Tensor:
        loss = step(self)
        training = self.settings.training
        return loss * float("nan") if self.settings.model.model == "linear" and training.seed == 1 else loss

    monkeypatch.setattr(Trainer, "training_step", fail)
    made = compare(question("multihead", "linear"), tmp_path, one_by_one)
    case = next(case for case in made.cases if case.label == "linear")
    assert (case.failed, case.letters) == (1, "")
    assert "runs that failed: linear (1 of 2)" in made.verdict
    assert any("the loss became nan" in trial.error for trial in made.trials)
    assert any("1 run(s) failed" in line for line in made.limits)


def test_mechanisms_that_cannot_learn_the_task(tmp_path: Path) -> None:
    models = {"linformer": settings("linformer"), "multihead": settings("multihead")}
    with pytest.raises(UserError, match="induction needs causal attention, which linformer does not support"):
        compare(Question(models, (0,), budget="none", costs=False), tmp_path, one_by_one)
    left = Question({"linformer": models["linformer"]}, (0,), budget="none", costs=False, optional=True)
    with pytest.raises(UserError, match="none of the models can learn this task: induction needs causal"):
        compare(left, tmp_path, one_by_one)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_costs_and_budgets_are_in_the_results(tmp_path: Path) -> None:
    made = compare(question("multihead", "linear", budget="params", costs=True, seeds=(0,)), tmp_path, one_by_one)
    assert len({case.parameters for case in made.cases}) == 1
    for case in made.cases:
        assert case.cost is not None
        for value in (case.cost.tokens_per_second, case.cost.prefill_ms, case.cost.decode_ms, case.cost.peak_bytes):
            assert value is not None
            assert value > 0
    multihead, linear = made.cases
    assert multihead.bytes_per_token
    assert not linear.bytes_per_token
    assert linear.bytes_per_sequence
    timed = compare(question("multihead", "linear", budget="time", seeds=(0,)), tmp_path, one_by_one)
    again = compare(question("multihead", "linear", budget="time", seeds=(0,)), tmp_path, one_by_one)
    assert [case.steps for case in timed.cases] == [case.steps for case in again.cases]


def test_steps_that_were_timed_earlier_keep_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise runs that have finished would be trained again for a few steps more or less."""
    measured = {"multihead": 2.0, "linear": 3.0}
    monkeypatch.setattr(budget, "step_seconds", lambda cases, data: {c.label: measured[c.label] for c in cases})

    def steps(*models: str, **values: int) -> dict[str, int | None]:
        cases = [Case(model, settings(model, steps=60, **values)) for model in models]
        asked = question(*models, budget="time")
        matched = _matched(_Comparison(asked, tmp_path, one_by_one, Progress()), cases)
        return {case.label: case.settings.training.steps for case in matched}

    assert steps("multihead", "linear") == {"multihead": 60, "linear": 40}
    measured |= {"multihead": 8.0, "linear": 8.0, "retention": 4.0}
    assert steps("multihead", "linear", "retention") == {"multihead": 60, "linear": 40, "retention": 120}
    assert steps("multihead", "linear", embed_dim=16) == {"multihead": 60, "linear": 60}  # other steps are timed again
    (tmp_path / "calibration.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(UserError, match=r"is damaged \(a \(0\): input should be greater than 0"):
        steps("multihead", "linear")


def test_capacities_need_a_setting_that_makes_the_task_harder() -> None:
    for setting, expected in {"pairs": ["multihead"], "embed_dim": []}.items():
        asked = question("multihead", sweeps=(Sweep(setting, (4, 8)),))
        cases = [Case("multihead", settings("multihead"), point) for point in (4, 8)]
        qualities = {case.name: {0: 0.99, 1: 0.98} for case in cases}
        assert [each.label for each in _capacities(asked, qualities, cases, (4, 8), "accuracy")] == expected


def test_costs_are_measured_on_the_data_of_each_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question("multihead", "linear", sweeps=(Sweep("embed_dim", (4, 8)), Sweep("seq_length", (13, 17))))
    cases = cases_of(asked.models, asked.sweeps)
    lengths: dict[str, int] = {}

    def measured(networks: dict[str, Network], data: TaskData, batch_size: int) -> dict[str, CostRecord]:
        length = data.test.x.shape[1]
        lengths.update(dict.fromkeys(networks, length))
        return dict.fromkeys(networks, CostRecord(length=length, batch=batch_size))

    monkeypatch.setattr(run, "measure_costs", measured)
    comparison = _Comparison(asked, tmp_path, one_by_one, Progress())
    records = [_case_record(comparison, case, case, dict.fromkeys([case.name], 0.01), {}, {}) for case in cases]
    made = _with_costs(comparison, cases, records)
    assert lengths == {f"{model}, seq_length {n}, 8": n for model in asked.models for n in (13, 17)}
    assert [each.cost.length if each.cost else None for each in made] == [
        case.settings.data.seq_length if case.point == 8 else None for case in cases
    ]


def test_a_comparison_without_a_result_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self: step(self) * float("nan"))
    with pytest.raises(UserError, match="every run failed, the first because: the loss became nan at step 1"):
        compare(question("multihead", "linear"), tmp_path, one_by_one)
    with pytest.raises(UserError, match=r"multihead failed at every learning rate \(0.1, 0.2\): the loss became nan"):
        compare(question("multihead", learning_rates=(0.1, 0.2)), tmp_path, one_by_one)
