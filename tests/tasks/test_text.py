"""Bytes of text: no paragraph in two parts, and compressors that are not given less than the network."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlab import tasks
from attnlab.errors import UserError
from attnlab.network import Inputs, Outputs
from attnlab.task import Problem, Request
from attnlab.tasks.text import ngram_bits, unique_paragraphs, windows

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "while", "it", "rains", "in", "town"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    paragraphs = [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (31,), generator=generator).tolist()) for _ in range(60)
    ]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs + paragraphs[:20]), "utf-8")  # a quarter of it twice
    return path


def text_of(problem: Problem) -> list[bytes]:
    parts = (problem.train, problem.validation, problem.test)
    return [bytes(part.x.flatten().tolist()) for part in parts]


def test_no_paragraph_is_in_two_parts(file: Path) -> None:
    problem = tasks.load("text").load(Request(data=file, seq_length=13))
    paragraphs = set(file.read_bytes().split(b"\n\n"))
    where = Counter(p for part in text_of(problem) for p in paragraphs if p[:120] in part)
    assert len(where) > 50
    assert set(where.values()) == {1}
    assert "60 paragraphs" in problem.facts[0]
    assert "dropped as duplicates" in problem.facts[0]


def test_targets_are_the_bytes_that_follow() -> None:
    split = windows(bytes(range(100)), 7)
    assert torch.equal(split.y, split.x + 1)
    assert torch.equal(split.x.flatten(), torch.arange(98))


def test_the_default_is_pythons_own_english() -> None:
    problem = tasks.load("text").load(Request())
    train, validation, test = text_of(problem)
    assert len(train) > 1_000_000
    assert b" the " in validation
    assert b" the " in test
    assert len(problem.encoding["sha256"]) == 64


@given(st.binary(min_size=8, max_size=300), st.binary(min_size=2, max_size=60), st.integers(0, 4))
def test_ngram_is_the_slow_formula(train: bytes, test: bytes, order: int) -> None:
    order = min(order, len(test) - 1)
    followers: dict[bytes, Counter[int]] = defaultdict(Counter)
    for size in range(order + 1):
        for i in range(size, len(train)):
            followers[train[i - size : i]][train[i]] += 1
    bits = 0.0
    for i, byte in enumerate(test):
        p = 1 / 256
        for size in range(min(order, i) + 1):
            seen = followers[test[i - size : i]]
            n, t = seen.total(), len(seen)
            p = (seen[byte] + t * p) / (n + t) if n else p
        bits -= math.log2(p)
    assert ngram_bits(train, test, order) == pytest.approx(bits / len(test))


def test_paragraphs_are_kept_once_and_in_order() -> None:
    text = b"\n\n".join([b"b", b"a", b" b ", b"", *(b"%d" % i for i in range(9))])
    assert unique_paragraphs(text) == [b"b", b"a", *(b"%d" % i for i in range(9))]
    assert unique_paragraphs(b"one\ntwo\none") == [b"one", b"two"]


def test_baselines_and_bits(file: Path) -> None:
    found = {
        b.name: b.values["bits_per_byte"]
        for b in tasks.load("text").load(Request(data=file, seq_length=13)).baselines()
    }
    assert {"zlib", "lzma"} < found.keys()
    assert all(0.5 < value < 4 for value in found.values())


def test_the_cost_of_a_line_is_that_of_its_own_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("abc\n\nd\n", "utf-8")
    text = tasks.load("text")
    split = text.read(tmp_path / "x.txt", Inputs("tokens", 256), 5, {})
    assert split.lengths is not None
    assert split.lengths.tolist() == [3, 1]
    scores = torch.zeros(2, 3, 256)
    scores[0, 0, ord("b")] = scores[0, 1, ord("c")] = scores[0, 2, ord("!")] = 100
    answers = text.answers(Outputs("tokens", 256), scores, split, {})
    assert answers["line"][0] == "abc"
    assert answers["bits_per_byte"][0] == pytest.approx(0)
    assert answers["next"][0].startswith("'!' 1.00")
    assert math.isnan(answers["bits_per_byte"][1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"  \n \n", "nothing but white space"),
        (b"abc\0def", "byte 3 is NUL"),
        (b"one\n\ntwo", "too few"),
        (b"\n\n".join(b"%d" % i for i in range(12)), "too few for a --seq_length"),
    ],
)
def test_bad_files(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        tasks.load("text").load(Request(data=tmp_path / "x.txt"))
