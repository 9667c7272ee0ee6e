"""The results as JSON, warnings, crossovers, the report and its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.bench import picture, report, results
from attnlab.bench.machine import Machine, commit_of, pinned
from attnlab.bench.measurement import Group, Row
from attnlab.bench.results import Plan, Result, crossovers
from attnlab.bench.timing import Ratio
from attnlab.bench.workloads import PHASES, Phase
from attnlab.utils.errors import UserError

PLAN = Plan(
    models={"multihead": "multihead", "hybrid": "3*linear,multihead"},
    options={"linear": {"feature_map": "relu", "bias": True}},
    lengths=[64, 256],
    batch_sizes=[1],
    phases=["training", "decode"],
    embed_dim=24,
    layers=1,
    causal=True,
    threads=1,
    device="cpu",
    precision="float32",
    budget=1.0,
    rounds=5,
    peers=[],
    memory=True,
)
MACHINE = Machine("2026-01-02", "a processor", 4, 1, [3], {"PyTorch": "2.13"}, 0.1, 0.2, 3.5, "0" * 40, True, "1.0")
NO_NOISE = Ratio(0.99, 1.0, 1.01, 9)


def around(median: float) -> Ratio:
    return Ratio(0.98 * median, median, 1.02 * median, 9)


def group(length: int, phase: Phase = "training", control: Ratio = NO_NOISE, **relative: Any) -> Group:
    """A group whose models take so many times as long as the first, or could not be measured."""
    rows = []
    for name, value in relative.items():
        if isinstance(value, str):
            rows.append(Row(name, 7, reason=value))
        else:
            rows.append(Row(name, 7, value * length / 1e6, around(value), 1e6 / value, 1000 * length))
    return Group(phase, length, 1, rows, control)


def result(*groups: Group, **machine: Any) -> Result:
    return Result(PLAN, replace(MACHINE, **machine), list(groups), finished=True)


numbers = st.floats(1e-9, 1e9)
ratio_values = st.builds(Ratio, numbers, numbers, numbers, st.integers(1, 41))
rows = st.builds(
    Row,
    model=st.text(max_size=5).filter(lambda text: text.isprintable()),
    parameters=st.integers(0, 10**12),
    seconds=st.none() | numbers,
    ratio=st.none() | ratio_values,
    tokens_per_second=st.none() | numbers,
    peak_bytes=st.none() | st.integers(0, 10**12),
    cache_bytes=st.none() | st.integers(0, 10**12),
    reason=st.sampled_from(["", "too | long"]),
)
groups = st.builds(
    Group,
    st.sampled_from(PHASES),
    st.integers(1, 10**7),
    st.integers(1, 100),
    st.lists(rows, max_size=3),
    st.none() | ratio_values,
)


@settings(max_examples=20)
@given(st.lists(groups, max_size=2))
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, groups: list[Group]) -> None:
    folder = tmp_path_factory.getbasetemp()
    written = result(*groups)
    written.write(folder)
    assert results.read(folder) == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("plan"), "plan: field required"),
        (lambda data: data["groups"][0].update(phase="sleep"), "groups.0.phase ('sleep'): input should be 'training'"),
        (lambda data: data["groups"][0]["rows"][0].update(seconds="long"), "groups.0.rows.0.seconds ('long')"),
        (lambda data: data.update(extra=1), "extra (1): unexpected keyword argument"),
    ],
)
def test_damaged_results_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    file = result(group(64, a=1.0)).write(tmp_path)
    data = json.loads(file.read_text("utf-8"))
    change(data)
    file.write_text(json.dumps(data), "utf-8")
    with pytest.raises(UserError) as raised:
        results.read(tmp_path)
    assert str(raised.value).startswith(f"{file} is damaged: {message}")
    assert "\n" not in str(raised.value)


def test_results_that_are_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / results.FILE).write_text('{"plan": NaN}', "utf-8")
    with pytest.raises(UserError, match="is damaged: it holds NaN, which is not JSON; measure again"):
        results.read(tmp_path)
    assert set(results.schema()["properties"]) == {"plan", "machine", "groups", "finished", "format"}


@pytest.mark.parametrize(
    ("load", "control", "number"),
    [
        (0.9, NO_NOISE, 0),
        (1.1, NO_NOISE, 1),
        (None, NO_NOISE, 0),
        (0.1, Ratio(0.96, 1.0, 1.06, 9), 1),
        (0.1, Ratio(0.94, 1.0, 1.04, 9), 1),
    ],
)
def test_a_busy_machine_and_a_noisy_control_are_warned_of(load: float | None, control: Ratio, number: int) -> None:
    assert len(result(group(64, control=control, a=1.0), load_before=load).warnings) == number


def test_crossovers_are_where_a_model_becomes_faster_for_good() -> None:
    curves: dict[int, dict[str, Any]] = {
        256: {"first": 1.0, "later": 2.0, "always": 0.5, "never": 2.0, "noise": 1.2, "partly": 2.0},
        1024: {"first": 1.0, "later": 0.5, "always": 0.4, "never": 1.1, "noise": 0.99, "partly": 0.5},
        4096: {"first": 1.0, "later": 0.1, "always": 0.1, "never": 1.5, "noise": 0.99, "partly": "too long"},
    }
    found = {c.model: c for c in crossovers([group(length, **values) for length, values in curves.items()])}
    assert found.keys() == {"later", "always", "partly"}
    assert found["later"].length == found["partly"].length == pytest.approx(512)
    assert (found["later"].is_first, found["always"].is_first) == (False, True)
    assert report.sentence(found["later"]) == "training: later is faster than first from about 512 tokens on"
    assert report.sentence(found["always"]) == "training: always is faster than first at every length"


def test_a_difference_within_the_noise_is_no_crossover() -> None:
    noisy = Ratio(0.5, 1.0, 2.0, 9)
    assert [c.model for c in crossovers([group(64, control=noisy, first=1.0, near=0.6, far=0.4)])] == ["far"]


def test_no_crossover_where_the_first_model_was_not_measured_at_every_length() -> None:
    assert not list(crossovers([group(64, a=1.0, b=0.5), group(256, a="too long", b=1.0)]))


def test_the_report_has_every_row_reason_warning_and_figure(tmp_path: Path) -> None:
    measured = result(
        group(64, multihead=1.0, hybrid=2.0),
        group(256, multihead=1.0, hybrid=0.5),
        group(64, "decode", multihead=1.0, hybrid="no | cache"),
        load_before=3.0,
    )
    files = report.write(measured, tmp_path, "attnlab bench --models a")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert [file.name for file in files] == ["report.md", "training.png"], "decode has one length"
    for part in (
        "attnlab bench --models a",
        "![training: time and peak memory by length](training.png)",
        "| multihead | 64.0 µs | 1.00 (0.98–1.02) | 1,000,000 | 62.5 KiB |  |",
        "| hybrid | 128 µs | 2.00 (1.96–2.04) | 500,000 | 62.5 KiB |  |",
        r"| hybrid | – | – | – | – | no \| cache |",
        "- training: hybrid is faster than multihead from about 128 tokens on",
        "**Warning:** the load average was 3.00 on 4 CPUs",
        "attnlab 1.0, commit 000000000000 with changes.",
    ):
        assert part in text
    assert "stopped" not in text
    report.write(replace(measured, finished=False), tmp_path, "")
    assert "The measurement was stopped" in (tmp_path / "report.md").read_text("utf-8")


@given(st.lists(st.floats(0, 300), max_size=20))
def test_labels_are_apart_in_their_order_and_inside_if_possible(places: list[float]) -> None:
    places = sorted(places)
    moved = picture._spread(places, 10.5, 300.0)
    assert all(b - a >= 10.5 - 1e-6 for a, b in pairwise(moved))
    assert all(place <= 300 + 1e-6 for place in moved)
    if all(b - a >= 10.5 for a, b in pairwise(places)):
        assert moved == places


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2.00 s"), (0.0123, "12.3 ms"), (0.9999, "1,000 ms"), (1e-4, "100 µs"), (3e-7, "0.30 µs")]
)
def test_durations_have_three_digits(value: float, text: str) -> None:
    assert report.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(7, "7 B"), (1500, "1.46 KiB"), (2**20, "1.00 MiB"), (2**40, "1,024 GiB")])
def test_sizes_have_three_digits(value: float, text: str) -> None:
    assert report.size(value) == text


def test_the_machine_has_the_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit_of(None) == commit_of(tmp_path) == (None, None)
    commit, modified = commit_of(Path(__file__).parent)
    assert commit is None or (len(commit) == 40 and modified in (True, False))
    with pinned(1) as cores:
        assert Machine.current(cores).cores == cores
