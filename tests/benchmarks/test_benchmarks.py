"""The benchmarks' own arithmetic, reports and page; no time is judged here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from attnlab.catalog import registry
from attnlab.checks import allocations
from attnlab.checks.costs import evaluate, exponent
from attnlab.models.slidingwindow import SlidingWindowAttention
from benchmarks import __main__ as command
from benchmarks import machine, page, picture, report, results
from benchmarks.goals import GOALS
from benchmarks.pairing import Pace, Ratio, race, seconds
from benchmarks.parts import cores, decoding, gpu, layers, length, mechanisms, padding
from benchmarks.peers import PEERS
from benchmarks.results import Absent, Finding, Growth, Memory, Result, Row, Speed

TINY = Pace(sample=0.0, seconds=0.0, least=3, most=3)

GPU_SIZES = gpu.Sizes(((2, 13, 24, 3),), heads=3, head_dim=8, length=67, window=11, cached=29, padded=(13, 7, 5))

SMALL: dict[str, Callable[[Pace], Iterator[Row]]] = {
    "layers": lambda pace: layers.rows(pace, [(2, 7, 24, 3)]),
    "padding": lambda pace: padding.rows(pace, (7, 5, 3), 24, 3),
    "cores": lambda pace: cores.rows(pace, 512, (128,)),
    "decoding": lambda pace: decoding.rows(pace, 5),
    "length": lambda pace: length.rows(pace, (16, 32)),
    "mechanisms": lambda pace: mechanisms.rows(pace, (16, 32), ("multihead", "slidingwindow")),
}


# What is kept in this repository


def test_the_page_is_what_the_results_make() -> None:
    made = page.page(results.read_all(report.RESULTS), page.NOTES.read_text("utf-8"))
    assert page.PAGE.read_text("utf-8") == made, "make it anew with: python -m benchmarks page"


RECORDED = sorted(file.stem for file in report.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", RECORDED)
def test_a_report_is_what_its_numbers_make(name: str) -> None:
    result = results.read(report.RESULTS / f"{name}.json")
    assert (report.RESULTS / f"{name}.md").read_text("utf-8") == report.markdown(result, report.load(name))


def test_results_goals_and_the_readme_name_the_parts_that_there_are() -> None:
    there = set(report.names())
    assert there - {"gpu"} <= set(RECORDED) <= there
    assert {goal.part for goal in GOALS} <= there
    readme = (Path(report.__file__).parent / "README.md").read_text("utf-8")
    assert set(re.findall(r"\(results/(\w+)\.md\)", readme)) == set(RECORDED)
    assert all(f"`{name}`" in readme for name in there)
    assert (page.PAGE.parent / "pictures" / page.PICTURE.name).is_file()


def test_every_goal_is_served_and_every_miss_explained() -> None:
    found, notes = results.read_all(report.RESULTS), page.NOTES.read_text("utf-8")
    served = {goal.key: page.served(goal, found) for goal in GOALS}
    assert [key for key, rows in served.items() if not rows] == []
    carried = {row.goal for result in found.values() for row in result.rows if row.goal}
    assert carried <= set(served)
    missed = [key for key, rows in served.items() if any(row.reached is False for row in rows)]
    assert [key for key in missed if not page.note(key, notes)] == [], "say why in benchmarks/notes.md"


# The race


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now, self.speed = 0.0, 1.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.speed

        return run


def test_a_ratio_is_their_time_over_ours() -> None:
    clock = Clock()
    pace = Pace(sample=0.1, seconds=0.0, least=5, most=5, clock=clock)
    found, control = race(clock.work(0.02), {"slow": clock.work(0.05), "fast": clock.work(0.004)}, pace)
    assert found["slow"].median == pytest.approx(2.5)
    assert found["fast"].median == pytest.approx(0.2)
    assert control.median == pytest.approx(1.0)
    assert {found["slow"].rounds, found["fast"].rounds, control.rounds} == {5}


def test_a_machine_that_slows_down_favours_no_side() -> None:
    clock = Clock()

    def work(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock.now += seconds * clock.speed
            clock.speed *= 1.02

        return run

    pace = Pace(sample=0.0, seconds=0.0, least=40, most=40, clock=clock)
    found, control = race(work(1.0), {"same": work(1.0)}, pace)
    assert (found["same"].lower, found["same"].upper) == pytest.approx((1.0, 1.0), abs=0.005)
    assert control.lower < 0.99
    assert control.upper > 1.01, "the control shows what the machine does"


@pytest.mark.parametrize(("one", "rounds"), [(1e-6, 41), (0.5, 16), (60.0, 9)])
def test_rounds_follow_from_the_time_there_is(one: float, rounds: int) -> None:
    assert Pace(seconds=8.0, least=9, most=41).rounds(one) == rounds


def test_seconds_is_the_time_of_each_work_once() -> None:
    clock = Clock()
    found = seconds({"a": clock.work(0.25), "b": clock.work(0.001)}, Pace(sample=0.1, least=3, clock=clock))
    assert found == pytest.approx({"a": 0.25, "b": 0.001})


# Memory


def test_peak_memory_is_the_most_that_is_held_at_once() -> None:
    def work() -> None:
        torch.empty(5_000_000, dtype=torch.uint8)  # gone before the next
        first = torch.empty(3_000_000, dtype=torch.uint8)
        second = torch.empty(4_000_000, dtype=torch.uint8)
        del first, second
        torch.empty(6_000_000, dtype=torch.uint8)

    assert allocations.peak(work) == pytest.approx(7_000_000, rel=1e-3)


# Rows

R = Ratio(0.96, 1.004, 1.1, 9)


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (Speed("a", "b", R, R, 1.0), True),
        (Speed("a", "b", R, R, 1.01), False),
        (Speed("a", "b", R, R, 1.0, floor=0.95), True),
        (Speed("a", "b", R, R, 1.0, floor=0.97), False),
        (Speed("a", "b", Ratio(0.99, 0.996, 1.0, 9), R, 1.0), True),  # as it is printed, 1.00
        (Memory("a", "b", 10, 150, 15.0), True),
        (Memory("a", "b", 10, 149, 15.0), False),
        (Growth("a", "time", [1024, 2048, 4096], [1.0, 2.2, 4.8], 1.15), True),
        (Growth("a", "time", [1024, 2048, 4096], [1.0, 2.3, 5.3], 1.15), False),
        (Growth("a", "time", [1024, 2048], [1.0, 4.0]), None),
        (Finding("a", "0.3", "0.5", True), True),
        (Absent("a", "b", "x is not installed"), None),
    ],
)
def test_what_counts_as_reached(row: Row, reached: bool | None) -> None:
    assert row.reached is reached


def test_growth_is_the_exponent_from_1024_on() -> None:
    row = Growth("a", "time", [256, 512, 1024, 2048, 4096], [7.0, 7.0, 1.0, 2.0, 8.0])
    assert row.steps == pytest.approx([1.0, 2.0])
    assert row.exponent == pytest.approx(1.5)


def test_a_result_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    rows: list[Row] = [
        Speed("a", "b", R, R, 1.0, 0.95, goal="torch"),
        Memory("a", "b", 10, 150, 15.0),
        Growth("a", "time", [8, 16], [1.0, 2.0], 1.15),
        Finding("a", "0.3", "0.5", True, {"seconds": 0.25}),
        Absent("a", "b", "x is not installed"),
    ]
    result = Result("some", machine.look([0]), rows)
    assert results.read(results.write(result, tmp_path)).rows == rows


# The reports, on shapes that take no time


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer is installed."""
    for module in PEERS.values():
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_peer_is_named_and_the_other_rows_go_on(name: str, alone: None, tmp_path: Path) -> None:
    absent, measured = check_report(name, tmp_path)
    assert measured
    for row in absent:
        assert re.fullmatch(r"[\w-]+ is not installed; pip install 'attnlab\[bench\]'", row.measured)
    assert len(absent) == {"layers": 6, "padding": 0, "cores": 2, "decoding": 2, "length": 0, "mechanisms": 0}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_what_peers_give_is_what_we_give(name: str, tmp_path: Path) -> None:
    for distribution, module in PEERS.items():
        pytest.importorskip(module, reason=f"{distribution} is in the extra bench")
    absent, _ = check_report(name, tmp_path)
    assert absent == []


def check_report(name: str, folder: Path) -> tuple[list[Absent], list[Row]]:
    """Measure a part on its small shape, keep it, read it back; the rows without a measurement, and the others."""

    class Part:
        TITLE, ABOUT = report.load(name).TITLE, report.load(name).ABOUT
        rows = staticmethod(SMALL[name])

    said: list[str] = []
    result = report.measure(name, Part, TINY, [], said.append)
    report.keep(result, Part, folder)
    written = (folder / f"{name}.md").read_text("utf-8")
    assert written == report.markdown(results.read(folder / f"{name}.json"), Part)
    assert written.startswith(f"# {said[0][2:]}\n")
    assert [row.what for row in results.read(folder / f"{name}.json").rows] == [row.what for row in result.rows]
    for row in result.rows:
        assert written.count(f"| {row.what} | {row.against} |") >= 1
    absent = [row for row in result.rows if isinstance(row, Absent)]
    return absent, [row for row in result.rows if not isinstance(row, Absent)]


# The page


def made_of(*rows: Row, part: str = "layers") -> dict[str, Result]:
    return {part: Result(part, machine.look([]), list(rows))}


def line(text: str, start: str) -> str:
    return next(line for line in text.split("\n") if line.startswith(start))


def test_a_miss_is_shown_with_its_rows_and_its_reason() -> None:
    good, bad = Ratio(1.1, 1.2, 1.3, 9), Ratio(0.8, 0.9, 1.0, 9)
    rows = [Speed("one", "Keras", good, R, 1.0, goal="keras"), Speed("two", "Keras", bad, R, 1.0, goal="keras")]
    text = page.page(made_of(*rows), "# Notes\n\n## torch\n\nno\n\n## keras\n\nBecause of this.\n\n## local\n\nno\n")
    assert "| 0.90 to 1.20×; 1 of 2 rows | **missed** |" in line(text, "| Keras on PyTorch")
    below = text[text.index("## What was missed") :]
    assert "| two | Keras | 0.90 (0.80–1.00) |" in below
    assert "Because of this." in below
    assert "| one |" not in below
    assert "\nno\n" not in below


def test_what_was_not_measured_is_said_to_be() -> None:
    text = page.page(made_of(Absent("one", "Keras", "keras is not installed; pip it", "keras")), "")
    assert "| keras is not installed; pip it | **not measured** |" in line(text, "| Keras on PyTorch")
    assert "|  | **not measured** | `decoding` |" in line(text, "| SDPA, `enable_gqa`")
    assert "What was missed" not in text


def test_a_goal_with_rows_of_which_one_could_not_be_measured_says_both() -> None:
    rows = [Speed("one", "Keras", R, R, 1.0, goal="keras"), Absent("two", "Keras", "not here", "keras")]
    assert page.summary(list(rows))[0] == "reached; 1 row(s) **not measured**"


# The picture


def curve(name: str, *values: float, quantity: str = "time") -> Growth:
    return Growth(name, quantity, [128, 256, 512, 1024], list(values))


def test_curves_cross_where_one_passes_below_the_other_for_good() -> None:
    square, line = curve("square", 1, 4, 16, 64), curve("line", 2, 4, 8, 16)
    ((winner, loser, at, value),) = picture.crossings([square, line])
    assert (winner, loser) == ("line", "square")
    assert at == pytest.approx(256)
    assert value == pytest.approx(4)


def test_curves_that_end_together_do_not_cross() -> None:
    assert list(picture.crossings([curve("a", 1, 2, 4, 8), curve("b", 1.1, 2.1, 3.9, 7.9)])) == []


def test_names_at_the_ends_keep_apart_and_in_order() -> None:
    curves = [curve("a", 1, 2, 4, 100), curve("b", 1, 2, 4, 100.1), curve("c", 1, 2, 4, 100.2)]
    names, heights = zip(*picture._spread(curves, 1.0), strict=True)
    assert names == ("a", "b", "c")
    assert heights[1] / heights[0] == pytest.approx(heights[2] / heights[1], rel=0.05)
    assert heights[1] / heights[0] > 1.2


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = [curve(name, 1, 4, 16, 64, quantity=q) for q in ("time", "peak memory") for name in ("a", "b")]
    file = picture.draw(Result("length", machine.look([]), list(rows)), tmp_path / "picture.png")
    assert file.read_bytes().startswith(b"\x89PNG")


# The command


def test_an_unknown_part_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "layer"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 2
    assert "unknown part 'layer'; there are: cores, " in capsys.readouterr().err


# What a card says


@pytest.mark.parametrize("name", registry.names())
def test_every_letter_of_a_card_is_an_option_that_the_docstring_explains(name: str) -> None:
    make = registry.load(name)
    layer = make(24)
    for cost in (make.card.time, make.card.memory):
        assert evaluate(cost, layer, 2048) > evaluate(cost, layer, 1024) > 0


def test_a_card_s_cost_is_computed_with_the_layer_s_options() -> None:
    layer = SlidingWindowAttention(24, 3, window_size=5)
    assert evaluate("n·(w + 2h)·d + n²/w", layer, 7) == 7 * (5 + 2 * 3) * 24 + 7**2 / 5
    assert exponent("n·(w + 2h)·d", layer, (7, 14)) == pytest.approx(1)
    assert exponent("n²·d", layer, (7, 14, 28)) == pytest.approx(2)
    with pytest.raises(ValueError, match=r"'n·z': z is neither n, d, h nor a letter"):
        evaluate("n·z", layer, 7)
    with pytest.raises(ValueError, match="is neither n, d, h nor"):
        evaluate("print(n)", layer, 7)


def test_the_gpu_rows_compare_outputs_and_name_what_is_missing() -> None:
    rows = list(gpu.rows(TINY, GPU_SIZES, "cpu", torch.float32))  # float32 on a CPU: the same rows, small
    assert {row.against for row in rows if isinstance(row, Absent)} == {gpu.FLASH}
    assert {row.against for row in rows if isinstance(row, Speed)} == {
        "nn.MultiheadAttention",
        "SDPA",
        "SDPA with a mask",
        "SDPA on a preallocated cache",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_the_part_says_what_is_missing_and_records_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    monkeypatch.setattr(machine, "pin", lambda threads: [])
    command.main()
    assert capsys.readouterr().out.splitlines()[0].startswith("gpu: no CUDA device")
    assert not list(tmp_path.iterdir())
