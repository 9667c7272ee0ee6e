"""A whole comparison: match the budget, choose learning rates, train every seed, analyse."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from attnlab import tasks
from attnlab.bench.machine import Machine
from attnlab.comparison import analysis, budget, results
from attnlab.comparison.budget import Budget
from attnlab.comparison.costs import measure_costs
from attnlab.comparison.execute import Executor
from attnlab.comparison.plan import TEST_ONLY, TUNING_SEED, Case, Sweep, Trial, Value, cases_of, plan_trials
from attnlab.comparison.results import BaselineRecord, CaseRecord, Point, Results, TrialRecord
from attnlab.comparison.trial import Outcome, read_result, read_tests
from attnlab.files.atomic import parse_json, read_bytes, write_text
from attnlab.tasks.base import TaskData
from attnlab.tasks.metrics import METRICS
from attnlab.training import runs
from attnlab.training.experiment import build, load_task_data
from attnlab.training.generate import caches_of_one_token
from attnlab.training.objective import Objective
from attnlab.training.settings import Settings
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

HARDER = ("pairs", "seq_length", TEST_ONLY, "vocabulary", "noise")
"""The settings whose larger values make a task harder, so that accuracy falls."""
CALIBRATION = "calibration.json"
"""The file with the measured seconds per step, which a comparison that is resumed uses again."""
_SECONDS = TypeAdapter(dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]])


@dataclass(frozen=True)
class Question:
    """What is compared.

    Args:
        models: the settings of each model by its label; the first is the baseline unless ``baseline`` names another.
        seeds: of the runs that are compared.
        learning_rates: those that are tried; none to take that of the settings.
        sweeps: the first is the horizontal axis; the values of others become curves of their own.
        budget: what is held equal.
        baseline: the label that the others are compared with.
        optional: whether models that cannot learn the task are left out, with a note, in place of an error.
        costs: whether speed and memory are measured.
        command: the command line, for the report.
        text: the question, for the report; by default made from the models and the task.
    """

    models: Mapping[str, Settings]
    seeds: Sequence[int]
    learning_rates: Sequence[float] = ()
    sweeps: Sequence[Sweep] = ()
    budget: Budget = "params"
    baseline: str = ""
    optional: bool = False
    costs: bool = True
    command: str = ""
    text: str = ""


@dataclass
class Progress:
    """Told of every stage; the command line shows it."""

    stage: Callable[[str, Sequence[Trial]], None] = lambda text, trials: None
    ended: Callable[[Trial, Outcome], None] = lambda trial, outcome: None


@dataclass
class _Comparison:
    """The state of a comparison that is running."""

    question: Question
    folder: Path
    execute: Executor
    progress: Progress
    limits: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    data: dict[str, TaskData] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def task_data(self, settings: Settings) -> TaskData:
        """The data of the first seed, loaded once for all cases with the same data."""
        settings = replace(settings, training=replace(settings.training, seed=self.question.seeds[0]))
        key = json.dumps([vars(settings.data), settings.training.seed, settings.training.metric], default=str)
        if key not in self.data:
            self.data[key] = load_task_data(settings)
        return self.data[key]

    def run(self, trials: Sequence[Trial], text: str) -> None:
        """Run the trials and keep their outcomes."""
        self.progress.stage(text, trials)
        with contextlib.closing(self.execute(trials, self.folder)) as ending:
            for trial, outcome in ending:
                self.outcomes[trial.folder] = outcome
                self.progress.ended(trial, outcome)


def compare(question: Question, folder: Path, execute: Executor, progress: Progress | None = None) -> Results:
    """Train what has not been trained yet, and analyse all of it.

    Everything is written below ``folder``; a comparison that was stopped resumes when it is started again.

    Raises:
        UserError: for a model that cannot learn the task, unless the question says that they are optional; if every run
            failed.
        StoppedError: after a signal; every run has then saved a checkpoint.
    """
    comparison = _Comparison(question, folder, execute, progress or Progress())
    folder.mkdir(parents=True, exist_ok=True)
    cases = _matched(comparison, _possible(comparison, cases_of(question.models, question.sweeps)))
    rates, tried, tuning = _learning_rates(comparison, cases)
    trials = plan_trials(cases, question.seeds, rates)
    comparison.run([trial for trial, _ in trials], "comparing")
    outcomes = [comparison.outcomes[trial.folder] for trial, _ in trials]
    if all(outcome.how == "failed" for outcome in outcomes):
        raise UserError(f"every run failed, the first because: {outcomes[0].error}")
    made = _results(comparison, cases, rates, tried, trials)
    return made.model_copy(update={"trials": [*made.trials, *(_trial_record(comparison, trial) for trial in tuning)]})


def _possible(comparison: _Comparison, cases: Sequence[Case]) -> list[Case]:
    """The cases whose networks can be built."""
    possible, refused = [], {}
    for case in cases:
        try:
            budget.count_parameters(case.settings, comparison.task_data(case.settings))
            possible.append(case)
        except UserError as error:
            if not comparison.question.optional:
                raise
            refused[case.model] = str(error)
    left = [case for case in possible if case.model not in refused]
    if not left:
        raise UserError(f"none of the models can learn this task: {next(iter(refused.values()))}")
    metrics = sorted({comparison.task_data(case.settings).metric for case in left})
    if len(metrics) > 1:
        raise UserError(f"--sweep cannot change the metric ({' and '.join(metrics)}); make one comparison for each")
    comparison.limits += [f"{model} was not run: {reason}." for model, reason in refused.items()]
    return left


def _matched(comparison: _Comparison, cases: list[Case]) -> list[Case]:
    """The cases at the same budget, within each point and variant."""
    kind, baseline = comparison.question.budget, _baseline(comparison.question, cases)
    if kind == "none" or len({case.model for case in cases}) == 1:
        comparison.held.append("the settings, apart from those that differ by mechanism")
        return cases
    matched: dict[int, Case] = {}
    seconds = _read_calibration(comparison.folder) if kind == "time" else {}
    worst = 0.0
    for group in _groups(cases).values():
        group = sorted(group, key=lambda i: cases[i].model != baseline)
        members = [cases[i] for i in group]
        data = comparison.task_data(members[0].settings)
        if kind == "params":
            changed = budget.match_parameters(members, data)
            worst = max([worst, *(abs(budget.deviation(case, changed[0], data)) for case in changed)])
        elif kind == "flops":
            changed = budget.match_steps(members, data, budget.step_flops(members, data))
        else:
            if any(case.step not in seconds for case in members):
                seconds |= _timed(members, data, seconds)
                write_text(comparison.folder / CALIBRATION, json.dumps(seconds))
            changed = budget.match_steps(members, data, {case.label: seconds[case.step] for case in members})
        matched |= dict(zip(group, changed, strict=True))
    if kind == "params":
        comparison.held.append(f"the parameters, to {max(worst, 0.001):.1%}, by the width of the MLPs or the embedding")
        if worst > budget.TOLERANCE:
            comparison.limits.append(
                f"The parameters differ by up to {worst:.1%}, because the widths that the heads divide are few."
            )
    elif kind == "time":
        comparison.held.append("the training time on this machine, by the number of steps (steps timed in turn)")
    else:
        comparison.held.append("the operations of the matrix products in training, by the number of steps")
    return [matched[i] for i in range(len(cases))]


def _groups(cases: Sequence[Case]) -> dict[tuple[Point, str], list[int]]:
    """The indices of the cases at each point and variant, which are compared with each other."""
    groups: dict[tuple[Point, str], list[int]] = {}
    for i, case in enumerate(cases):
        groups.setdefault((case.point, case.variant), []).append(i)
    return groups


def _timed(cases: Sequence[Case], data: TaskData, seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds per step of the cases that are not among the given ``seconds``, in proportion to those that are.

    Those that are keep them, because their runs were trained for steps that depend on them.
    """
    measured = budget.step_seconds(cases, data)
    known = next((case for case in cases if case.step in seconds), None)
    scale = 1.0 if known is None else seconds[known.step] / measured[known.label]
    return {case.step: scale * measured[case.label] for case in cases if case.step not in seconds}


def _read_calibration(folder: Path) -> dict[str, float]:
    """The seconds per step that were measured earlier, by `Case.step`."""
    file = folder / CALIBRATION
    try:
        return _SECONDS.validate_python(parse_json(read_bytes(file, 2**20)), strict=True) if file.is_file() else {}
    except ValueError as error:  # a ValidationError is one
        error = ValueError(first_error(error)) if isinstance(error, ValidationError) else error
        raise UserError(f"{file} is damaged ({error}); remove it, and the steps are timed again") from None


def _learning_rates(
    comparison: _Comparison, cases: Sequence[Case]
) -> tuple[dict[str, float], dict[str, dict[str, float | None]], list[Trial]]:
    """The best learning rate of each case on validation data, the metric of each that was tried, and the runs."""
    rates = comparison.question.learning_rates
    if len(rates) < 2:
        return {case.name: (rates or [case.settings.training.learning_rate])[0] for case in cases}, {}, []
    trials: list[tuple[Trial, list[Case]]] = []
    for rate in rates:
        trials += plan_trials(cases, [TUNING_SEED], dict.fromkeys((case.name for case in cases), rate))
    comparison.run([trial for trial, _ in trials], "choosing learning rates")
    tried: dict[str, dict[str, float | None]] = {case.name: {} for case in cases}
    for trial, covered in trials:
        outcome = read_result(trial, comparison.folder)
        for case in covered:
            tried[case.name][f"{trial.learning_rate:g}"] = None if outcome is None else outcome["validation"]
    chosen = {}
    for case in cases:
        values = {float(rate): value for rate, value in tried[case.name].items() if value is not None}
        if not values:
            errors = [comparison.outcomes[trial.folder].error for trial, covered in trials if case in covered]
            raise UserError(
                f"{case.name} failed at every learning rate ({_rates(rates)}): {errors[-1]}; give others with --lr"
            )
        better = max if Objective.of(comparison.task_data(case.settings)).higher_is_better else min
        chosen[case.name] = better(values, key=lambda rate: values[rate])
    if edge := sorted({case.label for case in cases if chosen[case.name] in (min(rates), max(rates))}):
        comparison.limits.append(
            f"The best learning rate is the smallest or the largest that was tried for {', '.join(edge)}; more extreme "
            "ones might be better."
        )
    return chosen, tried, [trial for trial, _ in trials]


def _results(
    comparison: _Comparison,
    cases: Sequence[Case],
    rates: Mapping[str, float],
    tried: Mapping[str, dict[str, float | None]],
    trials: Sequence[tuple[Trial, list[Case]]],
) -> Results:
    question, first = comparison.question, cases[0].settings
    data, task = comparison.task_data(first), tasks.entry(first.data.task)
    higher, overlap = METRICS[data.metric].higher_is_better, _overlap(data, task)
    qualities: dict[str, dict[int, float]] = {case.name: {} for case in cases}
    simple: dict[tuple[str, Point], list[float]] = {}
    trained: dict[str, Case] = {}
    for trial, covered in trials:
        trained |= dict.fromkeys((case.name for case in covered), trial.case)
        result = read_result(trial, comparison.folder)
        if result is None:
            continue
        tests = read_tests(trial, comparison.folder, data.metric) if trial.tests else {}
        for case in covered:
            value = tests[str(case.point)] if trial.tests else result["test"]
            if value is not None:
                qualities[case.name][trial.seed] = value
        if covered[0].label == cases[0].label:
            for each in result["baselines"]:
                simple.setdefault((each["name"], trial.case.point), []).append(each["value"])
    baseline = _baseline(question, cases)
    named = {(case.model, case.point, case.variant): case.name for case in cases}
    against = {
        case.name: named[baseline, case.point, case.variant]
        for case in cases
        if case.model != baseline and (baseline, case.point, case.variant) in named
    }
    found = analysis.differences(qualities, against, overlap)
    tied: dict[str, str] = {}
    for point in dict.fromkeys(case.point for case in cases):
        here = {case.name: qualities[case.name] for case in cases if case.point == point}
        tied |= analysis.letters(here, overlap, higher_is_better=higher)
    records = [
        _case_record(comparison, case, trained[case.name], rates, tried, qualities[case.name]).model_copy(
            update={"difference": found.get(case.name), "letters": tied.get(case.name, "")}
        )
        for case in cases
    ]
    if question.costs:
        records = _with_costs(comparison, cases, records)
    points = list(dict.fromkeys(case.point for case in cases))
    facts = Machine.current()
    made = Results(
        question=question.text or _text(question, cases, first, data),
        verdict="",
        command=question.command,
        created=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        machine=facts.environment,
        source=facts.source,
        task=first.data.task,
        task_summary=task.summary,
        caveat=task.caveat,
        data=first.data.data,
        metric=data.metric,
        metric_label=METRICS[data.metric].label,
        higher_is_better=higher,
        examples={name: len(getattr(data, name).x) for name in ("train", "validation", "test")},
        length=data.train.x.shape[1],
        seeds=list(question.seeds),
        budget=question.budget,
        held_equal=comparison.held,
        overlap=overlap,
        sweep=question.sweeps[0].setting if question.sweeps else None,
        points=points,
        baseline=baseline,
        cases=records,
        baselines=[
            BaselineRecord(name=name, point=point, quality=quality)
            for (name, point), values in simple.items()
            if (quality := analysis.interval_record(values, overlap)) is not None
        ],
        capacities=_capacities(question, qualities, cases, points, data.metric),
        trials=[_trial_record(comparison, trial) for trial, _ in trials],
        limits=comparison.limits,
    )
    return made.model_copy(update={"verdict": analysis.verdict(made), "limits": [*made.limits, *_limits(made)]})


def _case_record(
    comparison: _Comparison,
    case: Case,
    trained: Case,
    rates: Mapping[str, float],
    tried: Mapping[str, dict[str, float | None]],
    quality: Mapping[int, float],
) -> CaseRecord:
    """The record of a case, whose network is that of the case ``trained``."""
    settings, data = trained.settings, comparison.task_data(trained.settings)
    network = build(settings, data).eval()
    caches = caches_of_one_token(network)
    return CaseRecord(
        label=case.label,
        model=settings.model.model,
        point=case.point,
        learning_rate=rates[case.name],
        tried=tried.get(case.name, {}),
        steps=settings.training.steps,
        parameters=sum(p.numel() for p in network.parameters()),
        embed_dim=settings.model.embed_dim,
        mlp_width=settings.model.mlp_width,
        bytes_per_token=caches.bytes_per_token if caches else None,
        bytes_per_sequence=caches.bytes_per_sequence if caches else None,
        quality=analysis.interval_record(list(quality.values()), _overlap(data, tasks.entry(settings.data.task))),
        difference=None,
        letters="",
        failed=len(comparison.question.seeds) - len(quality),
    )


def _with_costs(comparison: _Comparison, cases: Sequence[Case], records: list[CaseRecord]) -> list[CaseRecord]:
    """The records of the last point with the measured costs of their networks."""
    comparison.progress.stage("measuring speed and memory", [])
    measured: dict[int, results.CostRecord] = {}
    for (point, _), group in _groups(cases).items():
        if point != cases[-1].point:
            continue
        first = cases[group[0]].settings
        data = comparison.task_data(first)
        networks = {cases[i].name: build(cases[i].settings, data) for i in group}
        costs = measure_costs(networks, data, first.training.batch_size)
        measured |= {i: costs[cases[i].name] for i in group}
    return [record.model_copy(update={"cost": measured.get(i)}) for i, record in enumerate(records)]


def _trial_record(comparison: _Comparison, trial: Trial) -> TrialRecord:
    path = comparison.folder / "runs" / trial.folder
    result = read_result(trial, comparison.folder)
    curve = []
    if result is not None:
        run = runs.Run.open(path)
        curve = [(line["step"], line[f"validation_{run.config['metric']}"]) for line in run.metrics()]
    outcome = comparison.outcomes.get(trial.folder)
    return TrialRecord(
        label=trial.case.label,
        point=trial.case.point,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        tuning=trial.is_tuning,
        run=f"runs/{trial.folder}",
        test=None if result is None else result["test"],
        validation=None if result is None else result["validation"],
        seconds=None if result is None else result["seconds"],
        error="" if outcome is None else outcome.error,
        curve=curve,
    )


def _capacities(
    question: Question,
    qualities: Mapping[str, Mapping[int, float]],
    cases: Sequence[Case],
    points: Sequence[Point],
    metric: str,
) -> list[results.CapacityRecord]:
    """The capacity of each label, for a sweep that makes a task with accuracy harder."""
    if not question.sweeps or question.sweeps[0].setting not in HARDER:
        return []
    axis = [point for point in points if isinstance(point, int | float) and not isinstance(point, bool) and point > 0]
    if metric != "accuracy" or len(axis) < 2 or len(axis) < len(points) or axis != sorted(axis):
        return []
    by_label: dict[str, dict[Value, Mapping[int, float]]] = {}
    for case in cases:
        assert case.point is not None
        by_label.setdefault(case.label, {})[case.point] = qualities[case.name]
    found = []
    for label, values in by_label.items():
        seeds = sorted(set.intersection(*(set(each) for each in values.values())))
        curves = {seed: [(float(point), values[point][seed]) for point in axis] for seed in seeds}
        if curves:
            found.append(analysis.capacity(label, curves))
    return found


def _limits(made: Results) -> list[str]:
    """What does not follow from a comparison of this kind."""
    lines = [
        f"Networks of this size, on {made.task} at length {made.length}: larger networks, longer training and other "
        "data may rank the mechanisms differently."
    ]
    if any(case.tried for case in made.cases):
        lines.append("The learning rate alone was tuned, with one seed; other settings are those of the command.")
    elif len({case.learning_rate for case in made.cases}) == 1:
        lines.append(
            "All mechanisms have the same learning rate. A ranking can be an effect of the learning rate alone: "
            "--lr sweep chooses one for each mechanism."
        )
    if made.budget == "params" and made.sweep in ("embed_dim", "mlp_width") and len(made.labels) > 1:
        lines.append(
            f"{made.sweep} is that of {made.baseline}; the others have the widths that give as many parameters."
        )
    if made.budget != "params" and any(len({case.parameters for case in made.at(p)}) > 1 for p in made.points):
        lines.append("The numbers of parameters differ.")
    if made.overlap:
        lines.append(
            "Every seed splits the same examples, so the seeds are not independent; the intervals are corrected for "
            "the overlap (Nadeau & Bengio 2003)."
        )
    if failed := sum(case.failed for case in made.cases):
        lines.append(
            f"{failed} run(s) failed; a mechanism with a failed run is not ranked, because its mean leaves out the "
            "runs that went wrong."
        )
    if made.caveat:
        lines.append(f"{made.caveat[0].upper()}{made.caveat[1:]}.")
    return lines


def _overlap(data: TaskData, task: tasks.Entry) -> float:
    return 0.0 if task.fresh_data else len(data.test.x) / max(1, len(data.train.x))


def _baseline(question: Question, cases: Sequence[Case]) -> str:
    models = list(dict.fromkeys(case.model for case in cases))
    return question.baseline if question.baseline in models else models[0]


def _text(question: Question, cases: Sequence[Case], settings: Settings, data: TaskData) -> str:
    models = list(dict.fromkeys(case.model for case in cases))
    shown = ", ".join(models) if len(models) <= 6 else f"{len(models)} mechanisms"
    goal = "highest" if METRICS[data.metric].higher_is_better else "lowest"
    where = settings.data.task if settings.data.data is None else Path(settings.data.data).name
    over = f", for each value of {question.sweeps[0].setting}" if question.sweeps else ""
    return f"Which of {shown} has the {goal} {METRICS[data.metric].label} on {where}{over}?"


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
