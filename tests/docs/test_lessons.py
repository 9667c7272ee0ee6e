"""Every lesson: its sections, its length, its numbers by pencil, its pictures and its measured table."""

from __future__ import annotations

import copy
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import blocks, links, prose, tables
from torch import Tensor

from attnlab.catalog import registry
from attnlab.docs import drawing, lesson
from attnlab.models.multihead import MultiAttention
from attnlab.nn.cache import RecurrentState

ROOT = Path(__file__).parents[2]
LESSONS = {name: registry.entry(name).folder / "README.md" for name in registry.names()}
SECTIONS = [
    "The problem it solves",
    "Predict first",
    "Three tokens by hand",
    "The equation, then the code",
    "What it looks like",
    "Cost",
    "Use it when / do not",
    "Claims",
    "Pitfalls",
    "Exercises",
    "Family",
]
WORDS = 3000  # fifteen minutes at 200 words a minute
CODE_LINES = 40
PICTURE_BYTES = 60_000

every_lesson = pytest.mark.parametrize("path", LESSONS.values(), ids=LESSONS)
drawn_lessons = pytest.mark.parametrize("name", [n for n, p in LESSONS.items() if p.with_name("figures.py").is_file()])


# The form


@every_lesson
def test_sections_stand_in_order(path: Path) -> None:
    titles = re.findall(r"^## +(.*)$", prose(path.read_text("utf-8")), flags=re.MULTILINE)
    assert titles == [section for section in SECTIONS if section in titles]


@every_lesson
def test_the_head_says_what_kind_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    title = text.split("\n")[0]
    assert re.match(r"# .+\(.+ · (exact|approximation|another operator)\)$", title), title
    assert "<!-- card -->\n" in text
    assert "<!-- /card -->" in text


@every_lesson
def test_it_is_read_in_fifteen_minutes(path: Path) -> None:
    assert len(prose(path.read_text("utf-8")).split()) <= WORDS


@every_lesson
def test_code_is_short(path: Path) -> None:
    assert {b.line: n for b in blocks(path.read_text("utf-8")) if (n := b.code.count("\n") + 1) > CODE_LINES} == {}


# The shared example, in exact fractions

VALUES = (21, 42, 63)
Rule = Callable[[int, int], bool]
Weight = Callable[[int, int], Fraction]


def causal(i: int, j: int) -> bool:
    return j <= i


def rising(i: int, j: int) -> Fraction:
    return Fraction(2) ** j


def falling(i: int, j: int) -> Fraction:
    return Fraction(2) ** (2 - j)


def even(i: int, j: int) -> Fraction:
    return Fraction(1)


def pooled(i: int, j: int) -> Fraction:
    """The mean of the keys j and 2 - j."""
    return Fraction(2) ** Fraction(j + (2 - j), 2)


def gated(*gates: Fraction) -> Weight:
    """The product of the gates after j up to i."""
    return lambda i, j: math.prod(gates[j + 1 : i + 1], start=Fraction(1))


def asked(*questions: Callable[[int], bool]) -> Weight:
    """Twice the weight for every question that is answered with yes: half of ln 2 on either side of 0."""
    return lambda i, j: Fraction(2) ** sum(question(j) for question in questions)


def outputs(
    may_look: Rule, weight: Weight = rising, values: Sequence[Fraction | int] = VALUES, sink: Fraction | int = 0
) -> list[Fraction]:
    """What the three tokens read: the average of the values by weight, 0 where nothing may be looked at."""
    found = []
    for i in range(3):
        seen = [j for j in range(3) if may_look(i, j)]
        total = sum((weight(i, j) for j in seen), Fraction(sink))
        found.append(sum((weight(i, j) * values[j] for j in seen), Fraction(0)) / total if total else Fraction(0))
    return found


GATES = (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10))  # the sigmoids of j ln 3


def outputs_gated(*gates: Fraction) -> list[Fraction]:
    """What goes on of what the three tokens read, looking back."""
    return [gate * read for gate, read in zip(gates, outputs(causal), strict=True)]


def outputs_by_sigmoid(n: Callable[[int], int]) -> list[Fraction]:
    """What they read, looking back, where the sigmoid of ``log p - log n`` is ``p / (p + n)``."""
    return [
        sum((rising(i, j) / (rising(i, j) + n(i)) * VALUES[j] for j in range(i + 1)), Fraction(0)) for i in range(3)
    ]


def sparse(step: Fraction) -> list[Fraction]:
    """What sparsemax over the scores ``step * j`` reads, looking back only."""
    found = []
    for i in range(3):
        scores = [step * j for j in range(i + 1)]
        size = max(k for k in range(1, i + 2) if 1 + k * scores[-k] > sum(scores[-k:]))  # they rise
        tau = (sum(scores[-size:]) - 1) / size
        weights = [max(score - tau, Fraction(0)) for score in scores]
        assert sum(weights) == 1
        found.append(sum((weight * value for weight, value in zip(weights, VALUES, strict=False)), Fraction(0)))
    return found


EXCHANGED = VALUES[::-1]
EXACT: dict[str, list[Fraction]] = {
    "causal": outputs(causal),
    "looking both ways": outputs(lambda i, j: True),
    "causal, window of 2": outputs(lambda i, j: 0 <= i - j < 2),
    "the scale forgotten": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "ALiBi with slope ln 2": outputs(causal, lambda i, j: rising(i, j) / Fraction(2) ** (i - j)),
    "a sink with logit 0": outputs(causal, sink=1),
    "a sink with logit ln 3": outputs(causal, sink=3),
    "a sink with logit −ln 2": outputs(causal, sink=Fraction(1, 2)),
    "gate logit 0": outputs_gated(*3 * [Fraction(1, 2)]),
    "gate logit j ln 3": outputs_gated(*GATES),
    "the same gates on the values": outputs(causal, values=[g * v for g, v in zip(GATES, VALUES, strict=True)]),
    "sigmoids": outputs_by_sigmoid(lambda i: i + 1),
    "sigmoids, n = 3 in every row": outputs_by_sigmoid(lambda i: 3),
    "sigmoids without log n": outputs_by_sigmoid(lambda i: 1),
    "q = 1, weights 1 : 2 : 4": outputs(causal),
    "q = −1, weights 4 : 2 : 1": outputs(causal, lambda i, j: rising(i, j) ** -1),
    "q = 2, weights 1 : 4 : 16": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "q = 0, weights 1 : 1 : 1": outputs(causal, lambda i, j: rising(i, j) ** 0),
    "the mask inverted by mistake": outputs(lambda i, j: not causal(i, j)),
    "one head": outputs(causal, even),
    "head 1 of two": outputs(causal),
    "head 2 of two": outputs(causal, falling),
    "one head, exchanged": outputs(causal, even, EXCHANGED)[2:],
    "head 1 of two, exchanged": outputs(causal, rising, EXCHANGED)[2:],
    "head 2 of two, exchanged": outputs(causal, falling, EXCHANGED)[2:],
    "keys pooled by the mean": outputs(causal, pooled),
    "scores of both added, P_l = (1, 1)": outputs(causal, lambda i, j: rising(i, j) * falling(i, j)),
    "own scores twice, P_l = (2, 0)": outputs(causal, lambda i, j: rising(i, j) ** 2),
    "half of both maps, P_w = (1/2, 1/2)": [
        (a + b) / 2 for a, b in zip(outputs(causal), outputs(causal, falling), strict=True)
    ],
    "one map less the other, P_w = (1, −1)": [
        a - b for a, b in zip(outputs(causal), outputs(causal, falling), strict=True)
    ],
    "both questions": outputs(causal, asked(lambda j: j > 0, lambda j: j > 1)),
    "the query answers the first": outputs(causal, asked(lambda j: True, lambda j: j > 1)),
    "v twice as long": outputs(causal, lambda i, j: asked(lambda j: j > 0, lambda j: j > 1)(i, j) ** 2),
    "v = 0": outputs(causal, even),
    "all gates 1": outputs(causal, gated(*3 * [Fraction(1)])),
    "all gates 1/2": outputs(causal, gated(*3 * [Fraction(1, 2)])),
    "the gate of token 2 closed": outputs(causal, gated(Fraction(1), Fraction(0), Fraction(1))),
    "the gate of token 3 closed": outputs(causal, gated(Fraction(1), Fraction(1), Fraction(0))),
    "the first map": outputs(causal),
    "the second map": outputs(causal, even),
    "their difference, λ = 2/3": [
        a - Fraction(2, 3) * b for a, b in zip(outputs(causal), outputs(causal, even), strict=True)
    ],
    "both ways, window of 2": outputs(lambda i, j: abs(i - j) < 2),
    "causal, chunks of 2": outputs(lambda i, j: causal(i, j) and i // 2 == j // 2),
    "both ways, chunks of 2": outputs(lambda i, j: i // 2 == j // 2),
    "causal, chunks of 2, one token of padding before": outputs(
        lambda i, j: causal(i, j) and (i + 1) // 2 == (j + 1) // 2
    ),
    "sparsemax, t = 1/3": sparse(Fraction(1, 3)),
    "sparsemax, t = 1/2": sparse(Fraction(1, 2)),
    "sparsemax, t = 1": sparse(Fraction(1)),
    "causal, window of 2, dilation 2": outputs(lambda i, j: i - j in (0, 2)),
    "causal, window of 1, token 1 global": outputs(lambda i, j: causal(i, j) and (i == j or j == 0)),
    "both ways, window of 1, token 1 global": outputs(lambda i, j: i == j or 0 in (i, j)),
    "the global token asks for early ones": outputs(
        lambda i, j: i == j or 0 in (i, j), lambda i, j: falling(i, j) if i == 0 else rising(i, j)
    ),
    "block 3 draws block 1": outputs(lambda i, j: i == j or 0 in (i, j)),
    "block 3 draws block 2": outputs(lambda i, j: i == j or 1 in (i, j)),
    "block 3 draws block 2, causal": outputs(lambda i, j: causal(i, j) and (i == j or 1 in (i, j))),
    "near head, strided, l = 1, causal": outputs(lambda i, j: 0 <= i - j <= 1),
    "far head, strided, l = 2, causal": outputs(lambda i, j: causal(i, j) and (i - j) % 2 == 0),
    "near head, fixed, l = 2, causal": outputs(lambda i, j: causal(i, j) and i // 2 == j // 2),
    "far head, fixed, l = 2, causal": outputs(lambda i, j: causal(i, j) and j % 2 == 1),
}


def section(text: str, title: str) -> str:
    after = text.partition(f"\n## {title}\n")[2]
    return after.partition("\n## ")[0]


@every_lesson
def test_the_numbers_by_hand_are_exact(path: Path) -> None:
    by_hand = section(path.read_text("utf-8"), "Three tokens by hand")
    rows = {row[0]: row[1:] for row in tables(by_hand)}
    for variant in EXACT.keys() & rows.keys():
        assert [Fraction(cell) for cell in rows[variant]] == EXACT[variant], variant
    if by_hand:
        assert all(str(value) in by_hand for value in VALUES)


def test_every_variant_is_shown_in_a_lesson() -> None:
    shown = {
        row[0] for path in LESSONS.values() for row in tables(section(path.read_text("utf-8"), "Three tokens by hand"))
    }
    assert EXACT.keys() - shown == set()
    assert [float(x) for x in EXACT["a sink with logit 0"]] == [10.5, 26.25, 44.625]
    assert "10.5, 26.25, 44.625" in LESSONS["selfhead"].read_text("utf-8")


# Pictures and measurements


@every_lesson
def test_pictures_are_there_small_and_used(path: Path) -> None:
    shown = {path.parent / link for link in links(path.read_text("utf-8")) if link.endswith(".png")}
    assert shown == set(path.parent.glob("figures/*.png"))
    for picture in shown:
        content = picture.read_bytes()
        width, _ = struct.unpack(">II", content[16:24])
        assert len(content) <= PICTURE_BYTES, picture.name
        assert 500 <= width <= 1000, picture.name


@pytest.mark.slow
@drawn_lessons
def test_pictures_are_drawn_by_their_code(name: str, tmp_path: Path) -> None:
    drawn = import_module(f"attnlab.models.{name}.figures").draw(tmp_path)
    assert {path.name for path in drawn} == {p.name for p in (LESSONS[name].parent / "figures").glob("*.png")}
    assert all(path.parent == tmp_path and path.stat().st_size <= PICTURE_BYTES for path in drawn)


def measured_beside_all(path: Path) -> bool:
    """Whether a lesson says that the benchmark of all mechanisms found its cost."""
    return "python -m benchmarks mechanisms" in section(path.read_text("utf-8"), "Cost")


@pytest.mark.parametrize("name", [name for name, path in LESSONS.items() if measured_beside_all(path)])
def test_the_table_of_costs_is_what_the_benchmark_of_all_measured(name: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "mechanisms.json").read_text("utf-8"))["rows"]
    times = {row["what"]: row["values"] for row in found if row["quantity"] == "time"}
    rows = {row[0]: row[1:] for row in tables(section(LESSONS[name].read_text("utf-8"), "Cost"))}
    assert [int(cell) for cell in rows["n"]] == found[0]["lengths"]
    for curve, which in {"multi-head attention": "multihead", "this": name}.items():
        assert [float(cell) for cell in rows[curve]] == [round(t / times["multihead"][0], 1) for t in times[which]]


@pytest.mark.parametrize("name", [n for n, p in LESSONS.items() if p.with_name("cost.json").is_file()])
def test_the_table_of_costs_is_what_was_measured(name: str) -> None:
    folder = LESSONS[name].parent
    (lengths, curves), (_, decoding) = lesson.read_cost(folder), lesson.read_cost(folder, "decoding")
    assert not curves.keys() & decoding.keys(), "a row of the tables has one name"
    rows = {row[0]: row[1:] for row in tables(section(LESSONS[name].read_text("utf-8"), "Cost"))}
    assert [int(cell) for cell in rows["n"]] == lengths
    for curve, ratios in {**curves, **decoding}.items():
        assert [float(cell) for cell in rows[curve]] == ratios


def test_a_picture_is_the_same_twice_and_white(tmp_path: Path) -> None:
    for name in ("once.png", "twice.png"):
        figure, (ax,) = drawing.canvas(5, 2)
        drawing.draw_curves(ax, [256, 512], {"a": [1.0, 3.0], "b": [1.0, 3.1]})
        drawing.save(figure, tmp_path / name)
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "twice.png").read_bytes()
    assert figure.get_facecolor() == (1, 1, 1, 1)


# What all lessons share


def test_reading_is_reproducible_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    once, twice = (lesson.read_text("selfhead", steps=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once.maps, twice.maps)
    assert once.maps.shape == (2, 1, len(lesson.TEXT), len(lesson.TEXT))
    assert torch.allclose(once.maps.sum(-1), torch.ones(()))
    assert not once.network.training


def test_teaching_goes_on_where_reading_ended() -> None:
    network = lesson.read_text("selfhead", steps=3).network
    before = [parameter.clone() for parameter in network.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    asked = [lesson.teach(network, steps=0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert asked[0] == asked[1] != asked[2]
    assert all(map(torch.equal, before, network.parameters())), "asking teaches nothing"
    twin = copy.deepcopy(network)
    assert lesson.teach(network, steps=40) == lesson.teach(twin, steps=40) > asked[0]
    assert not network.training


def test_only_letters_that_can_be_known_are_asked_for() -> None:
    torch.manual_seed(0)
    texts, following = lesson._repeated_words(200)
    asked = 0
    for text, answer in zip(texts.tolist(), following.tolist(), strict=True):
        space = text.index(len(lesson.LETTERS) - 1)
        assert 5 <= space <= 10
        assert len(set(text[:space])) == space
        for place, letter in enumerate(answer):
            if letter == -100:
                assert place < space
                continue
            asked += 1
            assert letter == text[(place + 1) % (space + 1)]
            assert place >= space
    assert asked > 200 * 12


def test_costs_are_measured_against_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "LENGTHS", (8, 16))
    threads = torch.get_num_threads()
    curves = lesson.measure_cost({"a": ("selfhead", {}), "b": ("multihead", {"num_heads": 2})}, embed_dim=8, rounds=1)
    assert torch.get_num_threads() == threads
    assert list(curves) == ["a", "b"]
    assert curves["a"][0] == 1
    assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in curves.values())


def test_decoding_is_measured_after_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "LENGTHS", (8, 16))
    seen: list[tuple[int, int]] = []
    forward = MultiAttention._forward

    def watched(self: MultiAttention, x: Tensor, *args: Any, **given: Any) -> Tensor:
        seen.append((given["cache"].length, x.shape[1]))
        return forward(self, x, *args, **given)

    monkeypatch.setattr(MultiAttention, "_forward", watched)
    layers = {"a": ("multihead", {"num_heads": 2}), "b": ("multihead", {"num_heads": 1})}
    curves = lesson.measure_decoding(layers, embed_dim=8, rounds=2)
    assert list(curves) == ["a", "b"]
    assert curves["a"][0] == 1
    assert set(seen) == {(0, 8), (0, 16), (8, 1), (16, 1)}, "the cache does not grow while it is measured"


def test_a_state_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "LENGTHS", (8, 16))

    def carries(self: MultiAttention, x: Tensor, mask: object, cache: RecurrentState) -> Tensor:
        cache.replace(x.shape[1], x[:, -1])
        return x

    monkeypatch.setattr(MultiAttention, "_forward", carries)
    monkeypatch.setattr(MultiAttention, "cache_type", RecurrentState)
    curves = lesson.measure_decoding({"a": ("multihead", {"num_heads": 2})}, embed_dim=8, rounds=3)
    assert len(curves["a"]) == 2
