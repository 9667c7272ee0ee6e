"""Every lesson: its sections, length, worked example, figures and table of costs; and the tools that make them."""

from __future__ import annotations

import copy
import json
import re
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from documents import anchors, blocks, links, prose, tables
from torch import Tensor
from worked_examples import EXACT, VALUES

from attnlab.catalog import registry
from attnlab.docs import example, lesson
from attnlab.models.multihead import MultiAttention
from attnlab.tasks.base import IGNORE
from attnlab.utils import drawing

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
LESSONS = {name: registry.entry(name).folder / "README.md" for name in registry.names()}
SECTIONS = [
    "Problem",
    "Predict first",
    "Three tokens by hand",
    "Equation and code",
    "What it attends to",
    "Cost",
    "When to use it, and when not",
    "Claims",
    "Pitfalls",
    "Exercises",
    "Family",
    "Card and checks",
]
MAX_WORDS = 3000  # fifteen minutes at 200 words per minute
MAX_CODE_LINES = 40
MAX_FIGURE_BYTES = 100_000

every_lesson = pytest.mark.parametrize("path", LESSONS.values(), ids=LESSONS)


def section(path: Path, title: str) -> str:
    after = path.read_text("utf-8").partition(f"\n## {title}\n")[2]
    return after.partition("\n## ")[0]


# The text


@every_lesson
def test_sections_length_and_generated_parts(path: Path) -> None:
    text = path.read_text("utf-8")
    titles = re.findall(r"^## +(.*)$", prose(text), flags=re.MULTILINE)
    assert titles == [title for title in SECTIONS if title in titles]
    title = text.split("\n")[0]
    assert re.match(r"# .+\(.+ · (exact|approximation|another operator)\)$", title), title
    assert "<!-- badge -->\n" in text.partition("\n## ")[0]
    card = section(path, SECTIONS[-1])
    assert "<!-- card -->\n" in card
    assert f"attnlab check {path.parent.name} --fast" in card
    assert len(prose(text).split()) <= MAX_WORDS
    lines = {block.line: block.code.count("\n") + 1 for block in blocks(text)}
    assert {line: count for line, count in lines.items() if count > MAX_CODE_LINES} == {}


def test_the_glossary_is_alphabetical_and_defines_every_linked_term() -> None:
    text = GLOSSARY.read_text("utf-8")
    terms = [term.lower() for term in re.findall(r"^## (.*)$", text, flags=re.MULTILINE)]
    assert terms == sorted(set(terms))
    for name, path in LESSONS.items():
        used = {link.partition("#")[2] for link in links(path.read_text("utf-8")) if "glossary.md#" in link}
        assert used <= anchors(text), name


@every_lesson
def test_the_worked_example_is_exact(path: Path) -> None:
    by_hand = section(path, "Three tokens by hand")
    rows = {row[0]: row[1:] for row in tables(by_hand)}
    for variant in EXACT.keys() & rows.keys():
        assert [Fraction(cell) for cell in rows[variant]] == EXACT[variant], variant
    if by_hand:
        assert all(str(value) in by_hand for value in VALUES)


def test_every_variant_appears_in_a_lesson() -> None:
    shown = {row[0] for path in LESSONS.values() for row in tables(section(path, "Three tokens by hand"))}
    assert EXACT.keys() - shown == set()
    assert [float(x) for x in EXACT["a sink with logit 0"]] == [10.5, 26.25, 44.625]
    assert "10.5, 26.25, 44.625" in LESSONS["selfhead"].read_text("utf-8")


# Figures and costs


@every_lesson
def test_every_figure_is_shown_and_small(path: Path) -> None:
    shown = {path.parent / link for link in links(path.read_text("utf-8")) if link.endswith(".png")}
    assert shown == set(path.parent.glob("figures/*.png"))
    for figure in shown:
        content = figure.read_bytes()
        width, _ = struct.unpack(">II", content[16:24])
        assert len(content) <= MAX_FIGURE_BYTES, figure.name
        assert 500 <= width <= 1000, figure.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selfhead", "multihead", "groupedquery", "bigbird"])  # the last has options only
def test_all_figures_of_a_lesson_are_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        lesson, "train_example", lambda *args, **options: example.train_example(*args, **options, max_steps=1)
    )
    drawn = lesson.draw_figures(name, tmp_path)
    assert {path.name for path in drawn} == {p.name for p in (LESSONS[name].parent / "figures").glob("*.png")}
    assert all(path.parent == tmp_path and path.stat().st_size <= MAX_FIGURE_BYTES for path in drawn)


def test_the_example_network_has_the_options_of_the_lesson() -> None:
    layer: Any = lesson.example_network("bigbird", max_steps=1).network.blocks[0].attention
    assert (layer.num_heads, layer.num_random) == (2, 1)


@every_lesson
def test_the_table_of_costs_matches_the_measurements(path: Path) -> None:
    cost, expected = section(path, "Cost"), {}
    if "python -m benchmarks mechanisms" in cost:
        results = json.loads((ROOT / "benchmarks" / "results" / "mechanisms.json").read_text("utf-8"))["rows"]
        times = {row["case"]: row["values"] for row in results if row["quantity"] == "time"}
        first = times["multihead"][0]
        expected = {"n": results[0]["lengths"]}
        for curve, mechanism in {"multi-head attention": "multihead", "this": path.parent.name}.items():
            expected[curve] = [round(time / first, 1) for time in times[mechanism]]
    if path.with_name("cost.json").is_file():
        (lengths, curves), (_, decoding) = lesson.read_cost(path.parent), lesson.read_cost(path.parent, "decoding")
        assert not curves.keys() & decoding.keys(), "the names of the rows are unique"
        expected |= {"n": lengths, **curves, **decoding}
    rows = {row[0]: row[1:] for row in tables(cost)}
    for name, numbers in expected.items():
        assert [float(cell) for cell in rows[name]] == numbers, name


def test_figures_are_reproducible_and_white(tmp_path: Path) -> None:
    for name in ("once.png", "twice.png"):
        figure, (matrix, curves) = drawing.canvas(7, 3, columns=2)
        drawing.draw_curves(curves, [256, 512], {"a": [1.0, 3.0], "b": [1.0, 3.1]})
        drawing.draw_heat_maps(figure, [matrix], [[[1.0, 0.0], [0.25, 0.75]]], ["x", "y"], ["title"])
        drawing.save(figure, tmp_path / name)
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "twice.png").read_bytes()
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("key position", "query position")
    assert figure.axes[-1].get_ylabel() == "attention weight"
    drawing.draw_heat_maps(figure, [matrix], [[[1.5, -0.5], [0.0, 1.0]]], ["x", "y"], ["signed"])
    image = matrix.get_images()[-1]
    assert (image.get_cmap().name, image.get_clim()) == ("RdBu", (-1.5, 1.5))
    drawing.draw_heat_maps(figure, [matrix], [[[0.1, -0.2], [0.0, 0.1]]], ["x", "y"], ["small"])
    assert matrix.get_images()[-1].get_clim() == (-0.2, 0.2)


# The example task


def test_training_is_reproducible_and_leaves_the_global_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    once, twice = (example.train_example("selfhead", max_steps=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(once.attention_weights, twice.attention_weights)
    assert once.attention_weights.shape == (2, 1, len(example.TEXT), len(example.TEXT))
    assert torch.allclose(once.attention_weights.sum(-1), torch.ones(()))
    assert once.steps == 3
    assert not once.network.training


@pytest.mark.slow
def test_training_continues_and_zero_steps_only_evaluate() -> None:
    network = example.train_example("selfhead", max_steps=3).network
    before = [parameter.clone() for parameter in network.parameters()]
    accuracies = [example.continue_training(network, steps=0, seed=seed) for seed in (1, 1, 2)]
    assert accuracies[0] == accuracies[1] != accuracies[2]
    assert all(map(torch.equal, before, network.parameters()))
    duplicate = copy.deepcopy(network)
    accuracy = example.continue_training(network, steps=40)
    assert accuracy == example.continue_training(duplicate, steps=40) > accuracies[0]
    assert not network.training


def test_training_stops_when_the_task_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "STEPS_PER_CHECK", 2)
    monkeypatch.setattr(example, "LEARNED", 0.0)
    assert example.train_example("selfhead", max_steps=9).steps == 2


@pytest.mark.parametrize("words", [example.Words(), example.Words(2, 3, restart=8)])
def test_only_predictable_letters_are_targets(words: example.Words) -> None:
    torch.manual_seed(0)
    texts, targets = example._repeated_words(200, words)
    assert texts.shape == targets.shape == (200, example.LENGTH)
    for text, following in zip(texts.view(-1, words.restart), targets.view(-1, words.restart), strict=True):
        space = text.tolist().index(example.SPACE)
        assert words.shortest <= space <= words.longest
        assert len(set(text[:space].tolist())) == space
        predictable = range(space, words.restart - (words.restart < example.LENGTH))
        assert (following != IGNORE).nonzero().flatten().tolist() == list(predictable)
        for position in predictable:
            assert following[position] == text[(position + 1) % (space + 1)]


@pytest.mark.parametrize("words", [example.Words(), example.Words(2, 3, restart=8)])
def test_a_mechanism_that_cannot_be_causal_fills_gaps(words: example.Words) -> None:
    trained = example.train_example("linformer", rank=2, max_length=example.LENGTH, max_steps=1)
    assert trained.text == "blacksmith bl_cksm_th"
    torch.manual_seed(0)
    blanked, targets = example._task(trained.network, 200, words)
    torch.manual_seed(0)
    texts, following = example._repeated_words(200, words)
    hidden = targets != IGNORE
    assert torch.equal(blanked, texts.masked_fill(hidden, example.BLANK))
    assert torch.equal(targets[hidden], texts[hidden])
    predictable = torch.nn.functional.pad(following[:, :-1] != IGNORE, (1, 0))
    assert not (hidden & ~predictable).any()
    assert 0.4 < hidden.sum() / predictable.sum() < 0.6


# Measuring


@pytest.mark.slow
def test_measured_costs_are_relative_to_the_first_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "LENGTHS", (1024, 2048))
    layers = {"a": ("multihead", {"num_heads": 2}), "b": ("linear", {"num_heads": 2})}  # a cache and a recurrent state
    threads = torch.get_num_threads()
    lesson.write_cost(SimpleNamespace(COST=layers, DECODING=layers), tmp_path)
    assert torch.get_num_threads() == threads
    for kind in ("curves", "decoding"):
        lengths, curves = lesson.read_cost(tmp_path, kind)
        assert (lengths, list(curves), curves["a"][0]) == ([1024, 2048], ["a", "b"], 1)
        assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in curves.values())


def test_the_cache_does_not_grow_while_decoding_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "LENGTHS", (8, 16))
    calls: list[tuple[int, int]] = []
    forward = MultiAttention._forward

    def recording(self: MultiAttention, x: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append((options["cache"].num_seen, x.shape[1]))
        return forward(self, x, *args, **options)

    monkeypatch.setattr(MultiAttention, "_forward", recording)
    lesson.measure_decoding({"a": ("multihead", {"num_heads": 2})})
    assert set(calls) == {(0, 8), (0, 16), (8, 1), (16, 1)}


def test_a_lesson_without_layers_to_measure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lesson.main(["gated", "--measure"])
    assert "figures.py defines no COST; use: python -m benchmarks mechanisms" in capsys.readouterr().err
