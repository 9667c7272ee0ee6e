"""A small comparison, and results without a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnlab.comparison import analysis
from attnlab.comparison.plan import Trial
from attnlab.comparison.results import BaselineRecord, CaseRecord, CostRecord, Results, TrialRecord
from attnlab.comparison.run import Question
from attnlab.comparison.trial import Outcome, run_trial
from attnlab.training.settings import Settings, defaults

SMALL = {"task": "induction", "steps": 3, "batch_size": 5, "embed_dim": 8, "layers": 1, "num_heads": 2, "threads": 1}


def settings(model: str, **values: Any) -> Settings:
    """Settings that train in a moment."""
    return defaults(model, "induction").updated({**SMALL, **values}, "a test")


def question(*models: str, **options: Any) -> Question:
    """A question about small networks."""
    arguments = {"seeds": (0, 1), "budget": "none", "costs": False, **options}
    return Question({model: settings(model) for model in models}, **arguments)


def results(
    values: Mapping[str, Sequence[float]],
    *,
    points: Sequence[Any] = (None,),
    baselines: Mapping[str, float] | None = None,
    costs: bool = False,
    **changes: Any,
) -> Results:
    """Results with these test metrics by label, one per seed, the same at every point."""
    labels = [*values]
    seeds = list(range(len(values[labels[0]])))
    by_seed = {label: dict(zip(seeds, each, strict=False)) for label, each in values.items()}
    found = analysis.differences(by_seed, dict.fromkeys(labels[1:], labels[0]), 0.0)
    tied = analysis.letters(by_seed, 0.0, higher_is_better=True)
    cost = CostRecord(
        tokens_per_second=12345.0, prefill_ms=1.5, decode_ms=0.25, peak_bytes=2**21, length=7, batch=3, spread=0.2
    )
    cases = [
        CaseRecord(
            label=label,
            model=label,
            point=point,
            learning_rate=0.01,
            tried={},
            steps=3,
            parameters=1_000,
            embed_dim=8,
            mlp_width=None,
            bytes_per_token=64 if i % 2 else 0,
            bytes_per_sequence=0 if i % 2 else 512 * (i + 1),
            quality=analysis.interval_record(list(values[label]), 0.0),
            difference=found.get(label),
            letters=tied.get(label, ""),
            failed=len(seeds) - len(values[label]),
            cost=cost if costs and point == points[-1] else None,
        )
        for point in points
        for i, label in enumerate(labels)
    ]
    trials = [
        TrialRecord(
            label=label,
            point=point,
            seed=seed,
            learning_rate=0.01,
            tuning=False,
            run=f"runs/{label}-{point}-{seed}",
            test=value,
            validation=value,
            seconds=1.0,
            error="",
            curve=[(step, value * step / 20) for step in range(1, 21)],
        )
        for point in points
        for label in labels
        for seed, value in enumerate(values[label])
    ]
    made = Results(
        question="Which?",
        verdict="",
        command="attnlab compare",
        created="2026-01-01",
        machine="a machine",
        source="attnlab",
        task="induction",
        task_summary="",
        caveat="",
        data=None,
        metric="accuracy",
        metric_label="accuracy",
        higher_is_better=True,
        examples={"train": 11, "validation": 5, "test": 7},
        length=13,
        seeds=seeds,
        budget="none",
        held_equal=["nothing"],
        overlap=0.0,
        sweep=None if points == (None,) else "pairs",
        points=list(points),
        baseline=labels[0],
        cases=cases,
        baselines=[
            BaselineRecord(name=name, point=None, quality=analysis.interval_record([value] * 2, 0.0))
            for name, value in (baselines or {}).items()
        ],
        capacities=[],
        trials=trials,
        limits=["small networks"],
    )
    return made.model_copy(update=changes)


def mark_and_maybe_die(trial: Trial, folder: Path, deaths: dict[int, int]) -> Outcome:
    """Leave a mark for every start; the worker of a seed kills itself so many times."""
    marks = folder / f"started-{trial.seed}"
    count = len(marks.read_text(encoding="utf-8")) if marks.exists() else 0
    marks.write_text("x" * (count + 1), encoding="utf-8")
    if count < deaths.get(trial.seed, 0):
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome("finished")


def train_and_maybe_die(trial: Trial, folder: Path, deaths: dict[int, int]) -> Outcome:
    """The same, and train the trial."""
    mark_and_maybe_die(trial, folder, deaths)
    return run_trial(trial, folder)


def train_and_tell(trial: Trial, folder: Path) -> Outcome:
    """Train the trial, and write how it ended into the pipe ``folder``/pipe, which this process holds open."""
    with (folder / "pipe").open("w", encoding="utf-8") as pipe:
        print("started", file=pipe, flush=True)
        outcome = run_trial(trial, folder)
        print(outcome.how, file=pipe)
    return outcome
