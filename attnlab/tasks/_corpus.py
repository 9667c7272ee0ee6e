"""A text and its units: lines, paragraphs, or none; together they are its bytes, each once and in order."""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnlab.files.data import check_size, open_data
from attnlab.tasks._requests import check_file
from attnlab.tasks._split import FEWEST, TEST, shuffled
from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError

Unit = Literal["lines", "paragraphs", "position"]

SUFFIXES = (".txt",)
LONG_LINE = 50
"""Bytes; the lines of prose are longer than this, those of code and verse shorter."""
MOST_LINES = 40
"""Lines of a paragraph on average; blocks of more are not paragraphs of prose."""


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    Args:
        source: what to call it.
        units: what is dealt to the three parts, as slices of the text with the white space behind them; for
            ``position`` the whole text is one.
        unit: what they are.
        why: the reason for this unit.
    """

    source: str
    units: list[bytes]
    unit: Unit
    why: str

    @functools.cached_property
    def sha256(self) -> str:
        """Of the bytes of the text."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(unit)
        return digest.hexdigest()

    @property
    def summary_lines(self) -> tuple[str, ...]:
        """What was understood, a line each."""
        size = sum(map(len, self.units))
        how = {"position": "at two positions", "lines": "by lines", "paragraphs": "by paragraphs"}[self.unit]
        count = f" in {len(self.units):,} {self.unit}" if self.unit != "position" else ""
        summary_lines = [f"{self.source}: {size:,} bytes{count}, sha256 {self.sha256[:16]}", f"split {how}: {self.why}"]
        repeats = len(self.units) - len({unit.strip() for unit in self.units})
        if self.unit == "paragraphs" and repeats:
            summary_lines.append(
                f"{repeats:,} of the paragraphs repeat another; all copies of one are in the same part"
            )
        return tuple(summary_lines)

    def parts(self, config: TaskConfig) -> tuple[bytes, bytes, bytes]:
        """The training, validation and test text; every byte of the corpus is in one of them.

        Lines and paragraphs are drawn by the seed and stay in their order; copies of a paragraph stay together.
        A text that is split by position ends with the test text, with the validation text before it.

        Raises:
            UserError: for fewer than ten units.
        """
        if self.unit == "position":
            text = self.units[0]
            test = len(text) - round(TEST * len(text))
            validation = test - max(1, round(config.val_fraction * test))
            return text[:validation], text[validation:test], text[test:]
        keys = [unit.strip() if self.unit == "paragraphs" else i for i, unit in enumerate(self.units)]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        part: dict[int, int] = {}
        for i, rows in enumerate(shuffled(len(numbers), config, f"different {self.unit}")):
            part |= dict.fromkeys(rows.tolist(), i)
        texts: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
        for key, unit in zip(keys, self.units, strict=True):
            texts[part[numbers[key]]].append(unit)
        train, validation_text, test_text = map(b"".join, texts)
        return train, validation_text, test_text


def corpus(text: bytes, source: str, split_by: Unit | None) -> Corpus:
    """A text and its units; without ``split_by`` these are chosen by what the text looks like."""
    blocks, lines = paragraphs(text), text.splitlines(keepends=True)
    if split_by is None:
        unit, why = _choose(blocks, lines)
    else:
        unit, why = split_by, "as --split_by asks"
    return Corpus(source, {"paragraphs": blocks, "lines": lines, "position": [text]}[unit], unit, why)


def _choose(blocks: list[bytes], lines: list[bytes]) -> tuple[Unit, str]:
    """What the units of a text are, and why."""
    size = sum(map(len, lines))
    lengths = sorted(len(line.strip()) for line in lines if line.strip())
    middle = lengths[len(lengths) // 2]
    single = sum(len(block.strip().splitlines()) == 1 for block in blocks)
    prose = 2 * single > len(blocks) or (middle >= LONG_LINE and len(lengths) <= MOST_LINES * len(blocks))
    different = len({block.strip() for block in blocks})
    if different >= FEWEST and prose and 2 * max(map(len, blocks)) <= size:
        return "paragraphs", "blank lines separate its paragraphs"
    if len(lengths) < FEWEST:
        return "position", f"it has only {len(lengths)} {'line' if len(lengths) == 1 else 'lines'}"
    if 2 * lengths[-1] > size:
        return "position", "one line is more than half of it"
    return "lines", "it is made of lines, not of paragraphs of prose"


def paragraphs(text: bytes) -> list[bytes]:
    """The paragraphs of a text, each with the blank lines behind it; those before the first belong to it."""
    units: list[list[bytes]] = [[]]
    begun = ended = False
    for line in text.splitlines(keepends=True):
        if line.strip():
            if ended:
                units.append([])
            begun, ended = True, False
        else:
            ended = begun
        units[-1].append(line)
    return [b"".join(unit) for unit in units]


def read_text(path: Path) -> bytes:
    """The bytes of a text file, as they are.

    Raises:
        UserError: for a file that is missing, empty, larger than memory allows, or binary (it holds a NUL byte).
    """
    check_file(path, "text", SUFFIXES)
    check_size(path, 9 * path.stat().st_size)  # the bytes, and each as a 64-bit token
    try:
        with open_data(path) as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror}") from None
    if b"\0" in text:
        raise UserError(f"{path} is binary: byte {text.index(0):,} is NUL; give plain text, in UTF-8 best")
    if not text.strip():
        raise UserError(f"{path} holds nothing but white space; put some text into it")
    return text


@functools.cache
def standard_library() -> tuple[bytes, ...]:
    """The paragraphs of the English inside Python, each once; nothing is imported.

    They are those of pydoc's topics, then of the docstrings of the standard library.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(inside):
            texts += docstrings(path)
    stripped = [paragraph.strip() for paragraph in "\n\n".join(texts).encode().split(b"\n\n")]
    return tuple(dict.fromkeys(paragraph for paragraph in stripped if paragraph))


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file, without their indentation; none of a file that cannot be parsed."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
