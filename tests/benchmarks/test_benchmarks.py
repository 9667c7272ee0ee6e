"""The timing, the reports and the page of the benchmarks; no test depends on a measured time."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnlab.bench import machine
from attnlab.bench.machine import Machine
from attnlab.bench.peers import PACKAGES, module_of
from attnlab.bench.timing import Ratio, TimingConfig
from attnlab.catalog import registry
from attnlab.checks import allocations
from attnlab.checks.costs import evaluate, exponent
from attnlab.models.slidingwindow import SlidingWindowAttention
from benchmarks import __main__ as command
from benchmarks import page, picture, report, results
from benchmarks.goals import GOALS
from benchmarks.parts import approximations, cores, decoding, gpu, layers, length, mechanisms, padding, recurrences
from benchmarks.results import Growth, Memory, Note, NotMeasured, Result, Row, Speed

TINY = TimingConfig(min_sample=0.0, budget=0.0, min_rounds=3, max_rounds=3)

GPU_SIZES = gpu.Sizes(((2, 13, 24, 3),), heads=3, head_dim=8, length=67, window=11, cached=29, padded=(13, 7, 5))

RECURRENT_SIZES = recurrences.Sizes(67, 64, (16, 32), (16, 32), context=29, embed_dim=24, num_heads=4)

EVERY_KIND = ("multihead", "slidingwindow", "deltanet", "nystrom")
SMALL: dict[str, tuple[int, Callable[[TimingConfig], Iterator[Row]]]] = {
    "layers": (6, lambda timing: layers.rows(timing, [(2, 7, 24, 3)])),
    "padding": (0, lambda timing: padding.rows(timing, (7, 5, 3), 24, 3)),
    "cores": (3, lambda timing: cores.rows(timing, 512, (128,))),
    "approximations": (4, lambda timing: approximations.rows(timing, 66, 24, 3, (2, 11))),
    "decoding": (2, lambda timing: decoding.rows(timing, 5)),
    "length": (0, lambda timing: length.rows(timing, (16, 32))),
    "recurrences": (11, lambda timing: recurrences.rows(timing, RECURRENT_SIZES, ("gateddeltanet", "multihead"))),
    "mechanisms": (0, lambda timing: mechanisms.rows(timing, (16, 32), EVERY_KIND)),
}
"""For each part the number of rows that need other packages, and its rows at small sizes."""

RECORDED = results.read_all(report.RESULTS)
NOTES = page.NOTES.read_text("utf-8")


# The recorded results


def test_page_is_up_to_date() -> None:
    assert page.PAGE.read_text("utf-8") == page.page(RECORDED, NOTES), "generate it with: python -m benchmarks page"


@pytest.mark.parametrize("name", RECORDED)
def test_report_is_up_to_date(name: str) -> None:
    expected = report.markdown(RECORDED[name], report.load(name))
    assert (report.RESULTS / f"{name}.md").read_text("utf-8") == expected, "run: python -m benchmarks page"


def test_results_goals_and_readme_name_the_same_parts() -> None:
    names = set(report.names())
    assert names - {"gpu"} <= set(RECORDED) <= names
    assert {goal.part for goal in GOALS} <= names
    readme = (Path(report.__file__).parent / "README.md").read_text("utf-8")
    assert set(re.findall(r"\(results/(\w+)\.md\)", readme)) == set(RECORDED)
    assert all(f"`{name}`" in readme for name in names)
    assert page.PICTURE.is_file()


def test_every_goal_has_rows_and_every_miss_a_note() -> None:
    rows = {goal.key: page.rows_of(goal, RECORDED) for goal in GOALS}
    assert [key for key, of_goal in rows.items() if not of_goal] == []
    assert {row.goal for result in RECORDED.values() for row in result.rows} <= {"", *rows}
    missed = [key for key, of_goal in rows.items() if any(row.met is False for row in of_goal)]
    assert [key for key in missed if not page.note(key, NOTES)] == [], "add the reason to benchmarks/notes.md"


# Rows

R = Ratio(0.96, 1.004, 1.1, 9)


def growth(*values: float, limit: float | None = None, quantity: str = "time", case: str = "a") -> Growth:
    lengths = [1024 * 2**i for i in range(len(values))]
    return Growth(case, quantity=quantity, lengths=lengths, values=list(values), limit=limit)


def speed(ratio: Ratio, target: float, **options: Any) -> Speed:
    return Speed("a", "b", ratio=ratio, control=R, target=target, **options)


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (speed(R, 1.0), True),
        (speed(R, 1.01), False),
        (speed(R, 1.0, floor=0.95), True),
        (speed(R, 1.0, floor=0.97), False),
        (speed(Ratio(0.99, 0.996, 1.0, 9), 1.0), True),  # printed as 1.00
        (Memory("a", "b", ours=10, theirs=150, target=15.0), True),
        (Memory("a", "b", ours=10, theirs=149, target=15.0), False),
        (growth(1.0, 2.2, 4.8, limit=1.15), True),
        (growth(1.0, 2.3, 5.3, limit=1.15), False),
        (growth(1.0, 4.0), None),
        (Note("a", text="0.3", requirement="0.5", is_met=True), True),
        (NotMeasured("a", "b", text="x is not installed"), None),
    ],
)
def test_target_is_met(row: Row, met: bool | None) -> None:
    assert row.met is met


def test_growth_is_the_exponent_from_1024_on() -> None:
    row = Growth("a", quantity="time", lengths=[256, 512, 1024, 2048, 4096], values=[7.0, 7.0, 1.0, 2.0, 8.0])
    assert row.steps == pytest.approx([1.0, 2.0])
    assert row.exponent == pytest.approx(1.5)


def test_result_round_trip(tmp_path: Path) -> None:
    rows: list[Row] = [
        speed(R, 1.0, floor=0.95, goal="torch"),
        Memory("a", "b", ours=10, theirs=150, target=15.0),
        growth(1.0, 2.0, limit=1.15),
        Note("a", text="0.3", requirement="0.5", is_met=True, values={"seconds": 0.25}),
        NotMeasured("a", "b", text="x is not installed"),
    ]
    assert results.read(results.write(Result("some", Machine.current([0]), rows), tmp_path)).rows == rows


# The reports, at small sizes


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, module_of(package), None)


@pytest.mark.parametrize("name", SMALL)
def test_missing_packages_are_named_and_other_rows_measured(name: str, no_packages: None, tmp_path: Path) -> None:
    rows = check_report(name, tmp_path)
    missing = [row for row in rows if isinstance(row, NotMeasured)]
    for row in missing:
        assert re.fullmatch(r"[\w-]+ is not installed; pip install 'attnlab\[bench\]'", row.text)
    assert len(missing) == SMALL[name][0]
    assert len(missing) < len(rows) or name == "approximations"  # all of its rows need a package


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_outputs_equal_those_of_the_packages(name: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        if find_spec(module_of(package)) is None:  # an import of Keras alone would look for TensorFlow
            pytest.skip(f"{package} is in the extra bench")
    assert not any(isinstance(row, NotMeasured) for row in check_report(name, tmp_path))


def check_report(name: str, folder: Path) -> list[Row]:
    """Measure a part at its small sizes, record it, read it again, and return its rows."""
    loaded, lines = report.load(name), list[str]()
    part = SimpleNamespace(TITLE=loaded.TITLE, ABOUT=loaded.ABOUT, rows=SMALL[name][1])
    result = report.measure(name, part, TINY, [], lines.append)
    report.record(result, part, folder)
    written = (folder / f"{name}.md").read_text("utf-8")
    recorded = results.read(folder / f"{name}.json")
    assert written == report.markdown(recorded, part)
    assert written.startswith(f"{lines[0]}\n")
    assert [row.case for row in recorded.rows] == [row.case for row in result.rows]
    for row in result.rows:
        assert f"| {row.case} | {row.baseline} |" in written
    return result.rows


@pytest.mark.slow
def test_every_recurrence_is_measured() -> None:
    measured = {row.case for row in recurrences.rows(TINY, RECURRENT_SIZES) if row.goal == "crossover"}
    assert measured >= {f"{name}, training" for name in ("linear", "gateddeltanet")}


def test_gpu_rows_compare_outputs() -> None:
    rows = list(gpu.rows(TINY, GPU_SIZES, "cpu", torch.float32))
    assert {row.baseline for row in rows if isinstance(row, NotMeasured)} == {gpu.FLASH}
    baselines = {row.baseline for row in rows if isinstance(row, Speed)}
    assert baselines == {"nn.MultiheadAttention", "SDPA", "SDPA with a mask", "SDPA on a preallocated cache"}


# The page


def result_of(*rows: Row) -> dict[str, Result]:
    return {"layers": Result("layers", Machine.current([]), list(rows))}


def line(text: str, start: str) -> str:
    return next(line for line in text.split("\n") if line.startswith(start))


def test_page_shows_missed_rows_with_their_note() -> None:
    rows = [
        Speed(name, "Keras", ratio=ratio, control=R, target=1.0, goal="keras")
        for name, ratio in {"one": Ratio(1.1, 1.2, 1.3, 9), "two": Ratio(0.8, 0.9, 1.0, 9)}.items()
    ]
    text = page.page(result_of(*rows), "# Notes\n\n## torch\n\nno\n\n## keras\n\nThe reason.\n\n## local\n\nno\n")
    assert "| 0.90 to 1.20×; 1 of 2 rows | **missed** |" in line(text, "| Keras on PyTorch")
    below = text[text.index("## Missed targets") :]
    assert "| two | Keras | 0.90 (0.80–1.00) |" in below
    assert "The reason." in below
    assert "| one |" not in below
    assert "\nno\n" not in below


def test_page_marks_rows_that_were_not_measured() -> None:
    text = page.page(result_of(NotMeasured("one", "Keras", text="keras is not installed; pip it", goal="keras")), "")
    assert "| keras is not installed; pip it | **not measured** |" in line(text, "| Keras on PyTorch")
    assert "|  | **not measured** | `decoding` |" in line(text, "| SDPA, `enable_gqa`")
    assert "Missed targets" not in text


def test_page_shows_from_which_length_each_recurrence_is_faster() -> None:
    rows = [
        Note(f"{name}, training", "multihead", text="", is_met=met, goal="crossover", values=values)
        for name, met, values in (
            ("one", True, {"256": [0.4, 0.5, 0.6, 1, 1], "1024": [1.9, 2.0, 2.1, 1, 1]}),
            ("two", False, {"256": [0.1, 0.2, 0.3, 1, 1], "1024": [0.8, 0.9, 1.0, 1, 1]}),
        )
    ]
    text = page.page({"recurrences": Result("recurrences", Machine.current([]), list(rows))}, "")
    assert "| 1 of 2 rows | **missed** |" in line(text, "| our multihead | each recurrence, training")
    assert "| one | 0.50× | 2.00× | 512 |" in text
    assert "| two | 0.20× | 0.90× | more than 1,024 |" in text


@pytest.mark.parametrize(
    ("rows", "summary"),
    [
        (
            [speed(R, 1.0), NotMeasured("two", "Keras", text="not here")],
            ("met; 1 row(s) **not measured**", "1.00 (0.96–1.10)"),
        ),
        (
            [growth(1, 2, limit=1.5), growth(1, 4, limit=1.5), growth(1, 1, limit=1, quantity="peak memory")],
            ("**missed**", "time N^1.00 to N^2.00, peak memory N^0.00 to N^0.00; 2 of 3 rows"),
        ),
    ],
)
def test_summary_is_a_range_per_quantity(rows: list[Row], summary: tuple[str, str]) -> None:
    assert page.summary(rows) == summary


# The figure


@pytest.mark.parametrize(
    ("first", "second", "crossings"),
    [((1, 4, 16, 64), (2, 4, 8, 16), [("b", "a", 2048)]), ((1, 2, 4, 8), (1.1, 2.1, 3.9, 7.9), [])],
)
def test_crossings(first: tuple[float, ...], second: tuple[float, ...], crossings: list[Any]) -> None:
    result = picture.crossings([growth(*first, case="a"), growth(*second, case="b")])
    assert [(winner, loser, round(length)) for winner, loser, length in result] == crossings


def test_figure_keeps_the_limits_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [growth(1, 4, 16, 64, quantity=q, case=c) for q in ("time", "peak memory") for c in ("a", "b")]
    figures: list[Any] = []
    monkeypatch.setattr(picture.drawing, "save", lambda figure, file: figures.append(figure) or file)
    picture.draw(Result("length", Machine.current([]), list(rows)), tmp_path / "picture.png")
    for ax, (_, _, scale) in zip(figures[0].axes, picture.PANELS, strict=True):
        low, high = ax.get_ylim()
        assert scale / 2 < low < scale < 64 * scale < high < 128 * scale
        assert not ax.texts


# The command


def test_unknown_part_is_rejected_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "layer"])
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    assert "unknown part 'layer'; choose from: approximations, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_gpu_part_without_a_device_records_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    monkeypatch.setattr(machine, "pinned", lambda threads: nullcontext([]))
    command.main()
    assert capsys.readouterr().out.splitlines()[0].startswith("gpu: no CUDA device")
    assert not list(tmp_path.iterdir())


# Peak memory and cost formulas


def test_peak_memory_is_the_maximum_held_at_once() -> None:
    def work() -> None:
        torch.empty(5_000_000, dtype=torch.uint8)  # released before the next
        first = torch.empty(3_000_000, dtype=torch.uint8)
        second = torch.empty(4_000_000, dtype=torch.uint8)
        del first, second
        torch.empty(6_000_000, dtype=torch.uint8)

    assert allocations.peak(work) == pytest.approx(7_000_000, rel=1e-3)


@pytest.mark.parametrize("name", registry.names())
def test_docstring_defines_the_letters_of_the_cost_formulas(name: str) -> None:
    layer = registry.load(name)(48)
    for cost in (layer.card.time, layer.card.memory):
        assert evaluate(cost, layer, 2048) > evaluate(cost, layer, 1024) > 0


def test_cost_formula_uses_the_options_of_the_layer() -> None:
    layer = SlidingWindowAttention(24, 3, window_size=5)
    assert evaluate("n·(w + 2h)·d + n²/w", layer, 7) == 7 * (5 + 2 * 3) * 24 + 7**2 / 5
    assert exponent("n·(w + 2h)·d", layer, (7, 14)) == pytest.approx(1)
    assert exponent("n²·d", layer, (7, 14, 28)) == pytest.approx(2)
    with pytest.raises(ValueError, match=r"'n·z': z is neither n, d, h nor a letter"):
        evaluate("n·z", layer, 7)
    with pytest.raises(ValueError, match="is neither n, d, h nor"):
        evaluate("print(n)", layer, 7)
