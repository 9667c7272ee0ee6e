"""A text and its units, lines or paragraphs, whose concatenation is the text."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnlab.files.data import check_size, open_data
from attnlab.tasks._options import check_file
from attnlab.tasks._split import MIN_ROWS, TEST, shuffled
from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError

Unit = Literal["lines", "paragraphs", "position"]

MIN_PROSE_LINE = 50
"""Bytes; the median line of prose is longer than this, that of code and verse shorter."""
MAX_PARAGRAPH_LINES = 40
"""Lines per paragraph of prose on average."""


@dataclass(frozen=True)
class Corpus:
    """A text to train on, from ``source``."""

    source: str
    units: list[bytes]
    """The slices of the text that are assigned to the three parts; for ``position`` the whole text is one."""
    unit: Unit
    why: str
    """The reason for this kind of units."""

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the text."""
        return hashlib.sha256(b"".join(self.units)).hexdigest()

    @property
    def summary_lines(self) -> tuple[str, ...]:
        """The size and the split of the text, one line each."""
        size = sum(map(len, self.units))
        how = {"position": "at two positions", "lines": "by lines", "paragraphs": "by paragraphs"}[self.unit]
        count = f" in {len(self.units):,} {self.unit}" if self.unit != "position" else ""
        summary_lines = [f"{self.source}: {size:,} bytes{count}, sha256 {self.sha256[:16]}", f"split {how}: {self.why}"]
        repeats = len(self.units) - len({unit.strip() for unit in self.units})
        if self.unit == "paragraphs" and repeats:
            summary_lines.append(f"{repeats:,} of the paragraphs repeat another; all copies are in the same part")
        return tuple(summary_lines)

    def parts(self, config: TaskConfig) -> tuple[bytes, bytes, bytes]:
        """The training, validation and test text; every byte of the corpus is in one of them.

        Lines and paragraphs are assigned at random and keep their order; copies of a paragraph stay together.
        A text that is split by position ends with the validation text and then the test text.

        Raises:
            UserError: for fewer than ten units.
        """
        if self.unit == "position":
            text = self.units[0]
            test = len(text) - round(TEST * len(text))
            validation = test - max(1, round(config.val_fraction * test))
            return text[:validation], text[validation:test], text[test:]
        keys = [unit.strip() if self.unit == "paragraphs" else i for i, unit in enumerate(self.units)]
        different = list(dict.fromkeys(keys))
        texts = []
        for rows in shuffled(len(different), config, f"different {self.unit}"):
            chosen = {different[row] for row in rows}
            texts.append(b"".join(unit for key, unit in zip(keys, self.units, strict=True) if key in chosen))
        return texts[0], texts[1], texts[2]


def corpus(text: bytes, source: str, split_by: Unit | None) -> Corpus:
    """A text and its units; without ``split_by`` they are chosen by the properties of the text."""
    blocks, lines = paragraphs(text), text.splitlines(keepends=True)
    unit, why = (split_by, "as set by --split_by") if split_by else _choose(blocks, lines)
    return Corpus(source, {"paragraphs": blocks, "lines": lines, "position": [text]}[unit], unit, why)


def _choose(blocks: list[bytes], lines: list[bytes]) -> tuple[Unit, str]:
    """The units of a text, and the reason."""
    size = sum(map(len, lines))
    lengths = sorted(len(line.strip()) for line in lines if line.strip())
    middle = lengths[len(lengths) // 2]
    single = sum(len(block.strip().splitlines()) == 1 for block in blocks)
    prose = 2 * single > len(blocks) or (middle >= MIN_PROSE_LINE and len(lengths) <= MAX_PARAGRAPH_LINES * len(blocks))
    different = len({block.strip() for block in blocks})
    if different >= MIN_ROWS and prose and 2 * max(map(len, blocks)) <= size:
        return "paragraphs", "blank lines separate its paragraphs"
    if len(lengths) < MIN_ROWS:
        return "position", f"it has only {len(lengths)} {'line' if len(lengths) == 1 else 'lines'}"
    if 2 * lengths[-1] > size:
        return "position", "one line is more than half of it"
    return "lines", "it consists of lines, not of paragraphs of prose"


def paragraphs(text: bytes) -> list[bytes]:
    """The paragraphs of a text, each with the blank lines after it; leading blank lines belong to the first."""
    lines = text.splitlines(keepends=True)
    runs = [b"".join(run) for _, run in itertools.groupby(lines, lambda line: bool(line.strip()))]
    if runs and not runs[0].strip():
        runs[:2] = [b"".join(runs[:2])]
    return [b"".join(runs[i : i + 2]) for i in range(0, len(runs), 2)] or [b""]


def read_text(path: Path) -> bytes:
    """The bytes of a text file; UserError if it is missing, empty, binary, or too large for the memory."""
    check_file(path, "text", (".txt",))
    check_size(path, 9 * path.stat().st_size)  # the bytes, and each as a 64-bit token
    try:
        with open_data(path) as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror}") from None
    if b"\0" in text:
        raise UserError(f"{path} is binary: byte {text.index(0):,} is NUL; give plain text, preferably in UTF-8")
    if not text.strip():
        raise UserError(f"{path} holds only white space; give a file with text")
    return text


@functools.cache
def standard_library() -> tuple[bytes, ...]:
    """The different paragraphs of the English that ships with Python; nothing is imported.

    They come from pydoc's topics, then from the docstrings of the standard library.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(parts):
            texts += docstrings(path)
    stripped = [paragraph.strip() for paragraph in "\n\n".join(texts).encode().split(b"\n\n")]
    return tuple(dict.fromkeys(paragraph for paragraph in stripped if paragraph))


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file, without their indentation; none if the file cannot be parsed."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
