"""Run the experiment of a claim, and judge its criteria."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from attnlab.bench.machine import Machine
from attnlab.claims.claim import Claim, Criterion, Point
from attnlab.claims.record import Arm, Judged, Record
from attnlab.comparison.execute import Executor
from attnlab.comparison.plan import Sweep, Trial, cases_of, plan_trials
from attnlab.comparison.run import Progress
from attnlab.comparison.statistics import Interval, interval, paired
from attnlab.comparison.trial import read_result, read_tests
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, check, defaults
from attnlab.utils.errors import UserError

FIRST_SEED = 100
"""Settings and criteria were chosen in trials with smaller seeds."""

Values = Mapping[tuple[str, Point | None], Mapping[int, float]]
"""The measured value by arm, point and seed."""


def run(
    claim: Claim, folder: Path, execute: Executor, progress: Progress | None = None, *, seeds: int | None = None
) -> Record:
    """Train every arm with every seed, measure, and judge.

    Runs that have finished in ``folder`` are used again.

    Raises:
        UserError: for settings that are refused, or a run that failed.
        StoppedError: after a signal.
    """
    progress = progress or Progress()
    numbers = [FIRST_SEED + i for i in range(seeds or claim.seeds)]
    arms = {name: _settings(claim, name) for name in claim.arms}
    trained = claim.sweep is not None and claim.measure == "test"
    sweeps = [Sweep(claim.sweep.setting, tuple(claim.sweep.values))] if trained and claim.sweep else []
    cases = cases_of(arms, sweeps)
    trials = plan_trials(cases, numbers, {case.name: case.settings.training.learning_rate for case in cases})
    folder.mkdir(parents=True, exist_ok=True)
    progress.stage(claim.name, [trial for trial, _ in trials])
    with contextlib.closing(execute([trial for trial, _ in trials], folder)) as ending:
        for trial, outcome in ending:
            if outcome.how == "failed":
                raise UserError(f"{claim.name}: {trial.case.name}, seed {trial.seed} failed: {outcome.error}")
            progress.ended(trial, outcome)
    values: dict[tuple[str, Point | None], dict[int, float]] = {}
    for trial, covered in trials:
        points = [None] if not claim.sweep else [case.point for case in covered] if trained else claim.sweep.values
        for point, value in zip(points, _measure(claim, trial, folder, points), strict=True):
            values.setdefault((trial.case.model, point), {})[trial.seed] = value
    machine = Machine.current()
    return Record(
        name=claim.name,
        sha256=claim.sha256,
        seeds=numbers,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        source=machine.source,
        machine=machine.environment,
        arms=[_arm(arm, point, list(each.values())) for (arm, point), each in values.items()],
        criteria=[judge(criterion, values) for criterion in claim.criteria],
    )


def judge(criterion: Criterion, values: Values) -> Judged:
    """The mean or the paired difference of a criterion with its interval, and whether the interval meets the bound."""
    ours = values[criterion.arm, criterion.at]
    seeds = sorted(ours)
    if criterion.is_difference:
        theirs = values[criterion.other]
        estimate: Interval = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    else:
        estimate = interval([ours[seed] for seed in seeds])
    if criterion.at_least is not None:
        holds, fails = estimate.low >= criterion.at_least, estimate.high < criterion.at_least
    else:
        assert criterion.at_most is not None
        holds, fails = estimate.high <= criterion.at_most, estimate.low > criterion.at_most
    return Judged(
        text=criterion.text,
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        outcome="holds" if holds else "fails" if fails else "undecided",
    )


def _arm(arm: str, point: Point | None, values: list[float]) -> Arm:
    each = interval(values)
    return Arm(arm=arm, point=point, values=values, mean=each.mean, low=each.low, high=each.high)


def _settings(claim: Claim, arm: str) -> Settings:
    """The settings of an arm; UserError for one that is refused."""
    values = {**claim.settings, **claim.arms[arm]}
    source = f"the claim {claim.name}"
    if missing := {"task", "model"} - values.keys():
        raise UserError(f"{source} lacks the setting {missing.pop()} for the arm {arm}")
    settings = defaults(values["model"], values["task"]).updated(values, source)
    check(settings)
    return settings


def _measure(claim: Claim, trial: Trial, folder: Path, points: Sequence[Point | None]) -> list[float]:
    """The values of a finished run at the points."""
    from attnlab.claims import measures

    run = Run.open(folder / "runs" / trial.folder)
    if claim.measure == "pruned":
        return measures.pruned(run, [float(point or 0) for point in points])
    if claim.measure == "first_token":
        return [measures.first_token(run)]
    if trial.tests:
        tests = read_tests(trial, folder, run.config["metric"])
        values = [tests[str(point)] for point in points]
        if None in values:
            raise UserError(f"{claim.name}: the metric of {run.path} is not defined on the test data")
        return [value for value in values if value is not None]
    result = read_result(trial, folder)
    assert result is not None
    return [result["test"]]
