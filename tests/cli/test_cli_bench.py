"""The command `attnlab bench`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import call, error_of, output_of

from attnlab.bench import benchmark, picture, results
from attnlab.bench.measurement import Group, Row
from attnlab.bench.results import Plan
from attnlab.bench.timing import Ratio
from attnlab.training.signals import StoppedError

SMALL = ("bench", "--lengths", "16", "--embed_dim", "24", "--num_heads", "3", "--brief", "--no_memory")
SAME = Ratio(1.0, 1.0, 1.0, 3)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Nothing is timed; the plans that would be measured."""
    asked: list[Plan] = []

    def run(plan: Plan, built: Any, progress: Any) -> Iterator[Group]:
        asked.append(plan)
        rows = [Row(label, 7, 0.5, SAME, 9.0, 2**20) for label in built.models]
        yield Group("training", 16, 1, rows, SAME)
        if plan.batch_sizes == [2]:  # the signal comes during the second case
            raise StoppedError(2)
        yield Group("training", 29, 1, rows, SAME)

    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(picture, "draw", lambda result, folder: [])
    return asked


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"models": {"multihead": "multihead", "linear": "linear"}, "lengths": [16], "options": {}}),
        ("--models sinks,linear --lengths 29,7 16", {"lengths": [7, 16, 29]}),
        (
            "--brief --models=sinks,linear",
            {"rounds": 3, "budget": 0.0, "models": {"sinks": "sinks", "linear": "linear"}},
        ),
        ("--models x=2*linear,sinks", {"models": {"x": "2*linear,sinks"}}),
        ("--phases decode,training", {"phases": ["training", "decode"]}),
        ("--feature_map relu", {"options": {"linear": {"feature_map": "relu"}}}),
        ("--no_bias", {"options": {"multihead": {"bias": False}, "linear": {"bias": False}}}),
        (
            "--model.linear.no_bias --num-heads 3",
            {"options": {"multihead": {"num_heads": 3}, "linear": {"num_heads": 3, "bias": False}}},
        ),
        ("--models linear --model.linear.feature_map relu", {"options": {"linear": {"feature_map": "relu"}}}),
        ("--no_causal --batch_sizes 3,3 --threads 1", {"causal": False, "batch_sizes": [3], "rounds": 5}),
    ],
)
def test_the_plan_of_a_command(plans: list[Plan], line: str, expected: dict[str, Any]) -> None:
    output_of("bench", "--lengths", "16", "--embed_dim", "24", *line.split())
    assert {name: getattr(plans[0], name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--models linaer", "unknown model 'linaer'; did you mean linear?"),
        ("--models", "the list of models is empty"),
        ("--models a,b,3*linear", "the commas in 'a,b,3*linear' separate models, layers of a pattern, or both"),
        ("--lengths 0", "--lengths takes whole numbers from 1 to 10,000,000, not '0'"),
        ("--lengths 1e3", "--lengths takes whole numbers from 1 to 10,000,000, not '1e3'"),
        ("--lengths", "--lengths needs at least one number"),
        ("--batch_sizes -1", "--batch_sizes takes whole numbers from 1 to"),
        ("--phases trainig", "unknown phase 'trainig'; did you mean training?"),
        ("--embed_dim 26", "multihead: embed_dim (26) must be divisible by num_heads (8); try num_heads="),
        ("--layers 0", "--layers must be from 1 to 1,000, not 0"),
        ("--budget nan", "--budget must be above 0 and at most 1,000,000 seconds, not nan"),
        ("--device cuda:99", "device 'cuda:99' is not available; available: auto, cpu"),
        ("--model.sinks.sink learned", "--model.sinks.sink is an option of sinks, but the model is multihead,linear"),
        ("--num_kv_heads 2", "no mechanism of multihead,linear has an option num_kv_heads; models that have it: "),
        ("--featuremap relu", "unknown option --featuremap; did you mean --feature_map?"),
        ("--peers tensorflow", "unknown peer 'tensorflow'; there are: torch, x-transformers, transformers, keras"),
        ("--peers torch --models linear", "--peers compares one layer of multihead: add it to --models"),
        (
            "--peers torch --no_bias",
            "--peers computes plain multi-head attention, so multihead takes no bias",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(line: str, message: str) -> None:
    assert error_of("bench", *line.split()).startswith(message)


def test_results_are_replaced_only_with_overwrite(plans: list[Plan]) -> None:
    output_of(*SMALL, "--output", "out")
    assert error_of(*SMALL, "--output", "out") == "out has results already; give another --output, or --overwrite"
    output_of(*SMALL, "--output", "out", "--overwrite")
    Path("bench/001").mkdir(parents=True)
    assert "written: bench/002/results.json, bench/002/report.md" in output_of(*SMALL)
    Path("file").touch()
    assert error_of(*SMALL, "--output", "file").startswith("cannot write --output file")


def test_a_stopped_measurement_keeps_what_was_measured(plans: list[Plan]) -> None:
    done = call(*SMALL, "--batch_sizes", "2", "--output", "out")
    assert (done.code, done.err) == (130, "stopped after 1 of 3 cases\n")
    kept = results.read(Path("out"))
    assert (len(kept.groups), kept.finished) == (1, False)
    assert "The measurement was stopped" in Path("out/report.md").read_text("utf-8")


@pytest.mark.slow
def test_models_that_cannot_be_built_as_asked_are_rows_and_lines_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = output_of(*SMALL, "--models", "multihead", "nystrom", "x=3*gateddeltanet,multihead", "--output", "out")
    assert "nystrom: NystromAttention does not support causal; it supports " in out
    tables = [line for line in out.splitlines() if line.startswith(("model ", "multihead ", "nystrom ", "x "))]
    assert len(tables) == 12
    assert max(map(len, tables)) <= 80
    kept = results.read(Path("out"))
    assert [[row.model for row in group.rows] for group in kept.groups] == [["multihead", "nystrom", "x"]] * 3
    assert all(group.rows[0].seconds and group.rows[2].seconds for group in kept.groups)
    assert not any(group.rows[1].seconds for group in kept.groups)


@pytest.mark.slow
def test_json_is_what_the_file_holds() -> None:
    out = output_of(*SMALL, "--models", "sinks", "--phases", "decode", "--output", "out", "--json")
    assert json.loads(out) == json.loads(Path("out/results.json").read_text("utf-8"))
