"""Text: bytes are kept, no paragraph is in two parts, and baselines use the same text."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_data import parts
from torch import Tensor

from attnlab import tasks
from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks.base import Split, TaskConfig, TaskData
from attnlab.tasks.text import line_windows
from attnlab.tasks.texts import baselines as text_baselines
from attnlab.tasks.texts.baselines import baselines, ngram_bits
from attnlab.tasks.texts.corpus import corpus, paragraphs, standard_library
from attnlab.utils.errors import UserError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "while", "it", "rains", "in", "town"]
CODE = b"".join(b"def f%d(x):\n    if x:\n        return x\n    return None\n\n\n" % (i % 7) for i in range(37))
POEM = b"\n".join(b"shall I compare thee\nto day %d\n  of summer\n" % (i % 11) for i in range(41))
LOG = b"".join(b"2024-02-%02d 12:00:00 GET /index.html 200 1234 0.%03d a long line\r\n" % (i, i) for i in range(29))
LETTERS = bytes(ord("a") + i % 26 for i in range(2_003))


def prose(count: int, *, repeated: int = 0, between: str = "\n\n", wrap: bool = False) -> bytes:
    picks = torch.randint(len(WORDS), (count, 31), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [" ".join(WORDS[i] for i in row) for row in picks]
    if wrap:
        texts = [text[:71] + "\n" + text[71:] for text in texts]
    return between.join(texts + texts[:repeated]).encode()


def load(path: Path, **asked: Any) -> TaskData:
    return tasks.load("text").load(TaskConfig(data=path, **asked))


TEXTS = {
    "prose": (prose(61), "paragraphs"),
    "wrapped prose": (prose(61, wrap=True), "paragraphs"),
    "prose with a repeat": (prose(61, repeated=23), "paragraphs"),
    "prose with CRLF": (prose(61, between="\r\n\r\n"), "paragraphs"),
    "prose with spaces between": (b"\n\n" + prose(61, between="\n  \n\t\n\n") + b"\n\n", "paragraphs"),
    "short paragraphs": (b"\n\n".join(b"word %d" % i for i in range(43)), "paragraphs"),
    "code": (CODE, "lines"),
    "poem": (POEM, "lines"),
    "log": (LOG, "lines"),
    "log in blocks": ((LOG * 2 + b"\n") * 11, "lines"),
    "prose without blank lines": (prose(61, between="\n"), "lines"),
    "few lines": (b"one line and\nanother one\n" * 3, "position"),
    "one paragraph again and again": ((prose(1) + b"\n\n") * 30, "lines"),
    "one long line": (LETTERS, "position"),
    "a long line among others": (b"short\n" * 20 + LETTERS, "position"),
    "prose and one huge paragraph": (prose(17) + b"\n\n" + LETTERS * 10, "position"),
    "a byte order mark and Latin-1": (b"\xef\xbb\xbf" + b"caf\xe9 au lait\r\n" * 13, "lines"),
}


@pytest.mark.parametrize("split_by", [None, "paragraphs", "lines", "position"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_byte_is_in_one_part(name: str, split_by: Any) -> None:
    text, unit = TEXTS[name]
    read = corpus(text, name, split_by)
    assert read.unit == (split_by or unit)
    assert b"".join(read.units) == text
    assert read.sha256 == hashlib.sha256(text).hexdigest()
    units = {unit.strip() for unit in read.units} if read.unit == "paragraphs" else read.units
    if split_by and split_by != "position" and len(units) < 10:
        return  # refused, as test_bad_files has it
    split = read.parts(TaskConfig(seed=3))
    assert sum(map(len, split)) == len(text)
    if split_by == "position" or read.unit == "position":
        assert b"".join(split) == text
    else:
        again = {"lines": lambda part: part.splitlines(keepends=True), "paragraphs": paragraphs}[read.unit]
        assert sum((Counter(again(part)) for part in split), Counter()) == Counter(read.units)
        for part in split:
            remaining = iter(read.units)
            assert all(unit in remaining for unit in again(part))  # in the order of the text


@given(st.binary().map(lambda b: b.replace(b"\x01", b"\n").replace(b"\x02", b"\n\n").replace(b"\x03", b"\r\n")))
def test_the_paragraphs_of_any_text_are_its_bytes(text: bytes) -> None:
    found = paragraphs(text)
    assert b"".join(found) == text
    assert all(unit.strip() for unit in found) or len(found) == 1
    assert b"".join(text.splitlines(keepends=True)) == text


def test_copies_of_a_paragraph_are_in_one_part() -> None:
    text = prose(60, repeated=20)  # a quarter of it twice
    split = corpus(text, "book", None).parts(TaskConfig())
    where = Counter(p for part in split for p in set(paragraphs(text)) if p.strip() in part)
    assert len(where) > 50
    assert set(where.values()) == {1}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (prose(60), ["60 paragraphs", "by paragraphs: blank lines separate its paragraphs"]),
        (prose(60, repeated=20), ["80 paragraphs", "by paragraphs: blank lines separate its paragraphs", "20 of the"]),
        (CODE, [f"{CODE.count(bytes([10]))} lines", "by lines: it consists of lines, not of paragraphs of prose"]),
        (LETTERS, ["2,003 bytes, sha256", "at two positions: it has only 1 line"]),
    ],
)
def test_summary_lines(text: bytes, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(text)
    summary_lines = load(tmp_path / "x.txt", seq_length=13).summary_lines
    assert summary_lines[0].startswith(f"{tmp_path / 'x.txt'}: {len(text):,} bytes")
    assert all(part in line for part, line in zip(lines, summary_lines, strict=True))


def test_sizes_of_a_split_by_position() -> None:
    split = corpus(LETTERS, "", "position").parts(TaskConfig(val_fraction=0.25))
    assert list(map(len, split)) == [1202, 400, 401]


def slow_bits(train: bytes, test: bytes, order: int) -> float:
    """A reference implementation of the interpolated n-gram."""
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
    return bits / len(test)


@given(st.binary(min_size=2, max_size=300), st.binary(min_size=1, max_size=60), st.integers(0, 4))
def test_ngram_matches_the_formula(train: bytes, test: bytes, order: int) -> None:
    bits = ngram_bits(train, [test, train], order)
    assert bits.shape == (order + 1, 2)
    assert bits[order, 0] == pytest.approx(slow_bits(train, test, order))
    assert bits[0, 1] == pytest.approx(slow_bits(train, train, 0))


def test_only_the_bytes_of_the_file_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added blank lines would make the text easier to predict."""
    monkeypatch.setattr(text_baselines, "ORDER", 3)
    text = b"".join(b"%d %s\n" % (i * 7919 % 97, WORDS[i * 31 % 13].encode()) for i in range(211))
    (tmp_path / "x.txt").write_bytes(text)
    task_data = load(tmp_path / "x.txt", seq_length=11)
    train, validation, test = corpus(text, "", "lines").parts(TaskConfig())
    order = min((1, 2, 3), key=lambda order: slow_bits(train, validation, order))
    values = {b.name: b.values["bits_per_byte"] for b in task_data.baselines()}
    assert values[f"byte {order + 1}-gram"] == pytest.approx(slow_bits(train, test, order))
    assert all(0.5 < values[name] < 8 for name in ("zlib", "lzma"))
    assert sum(part.x.numel() for part in parts(task_data)) <= len(text)
    asked = bytes(task_data.test.y.flatten().tolist())
    assert asked == test[1 : 1 + len(asked)]


def test_cost_of_baselines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation, test = prose(97), prose(53)[::-1], prose(31)
    assert not any("text" in b.name for b in baselines(train, validation, test))
    monkeypatch.setattr(text_baselines, "MAX_TRAIN", 2**10)
    monkeypatch.setattr(text_baselines, "MAX_TEST", 2**9)
    bounded = baselines(train, validation, test)
    assert all("of training text" in b.name and "of test text" in b.name for b in bounded)
    shortened = baselines(train[-(2**10) :], validation, test[: 2**9])
    assert [b.values for b in bounded] == [b.values for b in shortened]


@pytest.mark.slow
def test_default_text_is_the_documentation_of_python() -> None:
    task_data = tasks.load("text").load(TaskConfig())
    assert task_data.train.x.numel() > 1_000_000
    for split in (task_data.validation, task_data.test):
        assert b" the " in split.x.to(torch.uint8).numpy().tobytes()
    units = standard_library()
    assert len(set(units)) == len(units)
    text = b"\n\n".join(units)
    assert task_data.encoding["sha256"] == hashlib.sha256(text).hexdigest()
    assert f"{len(text):,} bytes in {len(units):,} paragraphs" in task_data.summary_lines[0]


def answers(path: Path, content: bytes, score: Any, length: int = 7) -> dict[str, list[Any]]:
    path.write_bytes(content)
    network: Any = SimpleNamespace(inputs=Inputs("tokens", 256), outputs=Outputs("tokens", 256), length=length)
    return tasks.load("text").predict(network, path, {"bytes": True}, score)


def test_whole_lines_are_scored_and_shown(tmp_path: Path) -> None:
    lengths = []

    def score(split: Split) -> Tensor:
        """Predicts byte b + 1 after byte b with certainty."""
        lengths.append(split.x.shape[1])
        assert split.lengths is None
        return 100 * torch.nn.functional.one_hot((split.x + 1) % 256, 256).double()

    long = bytes(range(65, 122))
    columns = answers(tmp_path / "x.txt", b"abc\r\n\r\nd\n" + long + b"\ncaf\xe9 " + long, score)
    assert columns["line"] == ["abc", "", "d", long.decode(), "caf\N{LATIN SMALL LETTER E WITH ACUTE} " + long.decode()]
    assert columns["bytes"] == [3, 0, 1, 57, 62]
    assert columns["bits_per_byte"][:4] == [pytest.approx(0), None, None, pytest.approx(0)]
    wrong = 5  # c-a, a-f, f-é, é-space, space-A
    assert columns["bits_per_byte"][4] == pytest.approx(wrong * 100 / math.log(2) / 61)
    assert [text[:8] for text in columns["next"]] == ["'d' 1.00", "", "'e' 1.00", "'z' 1.00", "'z' 1.00"]
    assert max(lengths) == 7


@given(st.integers(0, 97), st.integers(1, 13))
def test_line_windows_score_every_byte_once(size: int, length: int) -> None:
    found = list(line_windows(5, size, length))
    assert [j for window in found for j in range(window.first_scored, window.stop)] == list(range(size))
    for window in found:
        assert 0 <= window.start <= window.first_scored < window.stop <= window.start + length
        assert window.start == 0 or window.first_scored - window.start >= length // 2


def test_line_scores_match_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network("multihead", ("tokens", 256), ("tokens", 256), 11, embed_dim=16, causal=True).eval()
    lines = [b"a short one", b"x", b"yz", b"a line that is longer than the network can read at once", b"last"]
    with torch.no_grad():
        columns = answers(tmp_path / "x.txt", b"\n".join(lines), lambda split: network(split.x), length=11)
        for line, cost in zip(lines, columns["bits_per_byte"], strict=True):
            if len(line) == 1:
                assert cost is None
                continue
            bits = 0.0
            for i in range(1, len(line)):
                start = 0 if i <= 11 else min(5 * ((i - 12) // 5 + 1), len(line) - 11)
                row = network(torch.tensor([list(line[start:i])]))[0, -1].double()
                bits -= float(row.log_softmax(-1)[line[i]]) / math.log(2)
            assert cost == pytest.approx(bits / (len(line) - 1), rel=1e-5)


def test_new_text_is_cut_into_windows(tmp_path: Path) -> None:
    def read(content: bytes) -> Split:
        (tmp_path / "x.txt").write_bytes(content)
        return tasks.load("text").read_labelled(tmp_path / "x.txt", Inputs("tokens", 256), 7, {})

    whole = b"\xef\xbb\xbfone\r\n\r\n two\n" * 3
    split = read(whole)
    assert split.x.shape == (6, 7)
    assert bytes(split.x.flatten().tolist()) == whole[:42]
    assert bytes(split.y.flatten().tolist()) == whole[1:43]
    split = read(b"abc")
    assert (split.x.tolist(), split.y.tolist()) == ([[97, 98]], [[98, 99]])
    with pytest.raises(UserError, match="holds one byte"):
        read(b"a")


@pytest.mark.parametrize(
    ("content", "asked", "says"),
    [
        (b"", {}, "is empty"),
        (b"  \n \n", {}, "only white space"),
        (b"abc\0def", {}, "byte 3 is NUL"),
        (b"one\n\ntwo", {}, "leaves 1 bytes for one of the three parts, too few for a --seq_length of 128"),
        (b"\n\n".join(b"%d" % i for i in range(12)), {}, "too few for a --seq_length"),
        (LETTERS, {"split_by": "lines"}, "too few different lines .* \\(1\\)"),
        (prose(1) * 30, {"split_by": "paragraphs"}, "too few different paragraphs .* \\(1\\)"),
    ],
)
def test_bad_files(content: bytes, asked: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "x.txt", **asked)


def test_documentation_can_be_split_by_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks.text.standard_library", lambda: tuple(prose(23).split(b"\n\n")))
    task_data = tasks.load("text").load(TaskConfig(split_by="position", seq_length=5))
    assert bytes(task_data.train.x.flatten().tolist()) == prose(23)[: task_data.train.x.numel()]
    assert task_data.encoding["split_by"] == "position"
