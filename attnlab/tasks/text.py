"""Byte-level language modelling: what is the next byte?"""

from __future__ import annotations

import ast
import functools
import hashlib
import lzma
import math
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.errors import UserError
from attnlab.network import Inputs, Outputs
from attnlab.task import Baseline, Problem, Request, Split, Task
from attnlab.tasks._requests import check_file, length_within, takes
from attnlab.tasks._split import Parts, shuffled

Codes = NDArray[np.int64]

LENGTH = 128
ORDER = 5
"""The longest context of the n-gram baseline, in bytes."""


class Text(Task):
    """Every byte from those before it; the loss in bits is how far the text can be compressed.

    ::

        x   T h e   c a
        y   h e   c a t

    The text is split by paragraphs, each kept once: a paragraph that stood in the training and in the test data would
    be predicted by heart. The default is English that ships inside Python: the help topics of ``pydoc`` and the
    docstrings of the standard library, as they are in the Python that runs (its SHA-256 is printed and recorded).
    """

    summary = "the next byte of English text, or of your own .txt: bits per byte"
    remark = "the compressors and the n-gram see the same training text; a byte of English needs 8 bits uncompressed"
    suffixes = (".txt",)
    defaults = {"causal": True, "epochs": 3, "embed_dim": 128, "learning_rate": 2e-3}

    def load(self, request: Request) -> Problem:
        """Paragraphs to three parts, each cut into windows of ``seq_length`` bytes (128).

        Raises:
            UserError: for a file that is missing, empty, binary or too short.
        """
        takes(request, "text", "seq_length", "data")
        N = length_within(request, "text", LENGTH, 2, 100_000)
        if request.data is None:
            text, source = standard_library(), "Python's own help topics and docstrings"
        else:
            text, source = read_text(request.data), str(request.data)
        paragraphs = unique_paragraphs(text)
        parts = [b"\n\n".join(paragraphs[i] for i in rows) for rows in split(paragraphs, request)]
        shortest = min(map(len, parts))
        if shortest <= N:
            raise UserError(
                f"{source} leaves {shortest:,} bytes for one of the three parts, too few for a --seq_length of {N}; "
                "give a longer text, or a smaller --seq_length"
            )
        digest = hashlib.sha256(b"\n\n".join(paragraphs)).hexdigest()
        whole = sum(map(len, parts))
        dropped = 1 - sum(map(len, paragraphs)) / max(1, len(text))
        train, validation, test = parts
        return Problem(
            windows(train, N),
            windows(validation, N),
            windows(test, N),
            inputs=Inputs("tokens", 256),
            outputs=Outputs("tokens", 256),
            length=N,
            metric="bits_per_byte",
            causal=True,
            encoding={"bytes": True, "sha256": digest},
            facts=(
                f"{source}: {whole:,} bytes in {len(paragraphs):,} paragraphs, {dropped:.0%} dropped as duplicates",
                f"sha256 {digest[:16]}",
            ),
            baselines=lambda: baselines(train, validation, test),
        )

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The lines of a .txt file, each a row of bytes with padding behind it; the last ``length`` bytes of long ones.

        Raises:
            UserError: for a file that is missing, empty or binary.
        """
        check_file(path, "text", self.suffixes)
        lines = [line[-length:] for line in read_text(path).splitlines() if line]
        if not lines:
            raise UserError(f"{path} holds only empty lines; give some text to go on with")
        lengths = torch.tensor([len(line) for line in lines])
        x = torch.zeros(len(lines), int(lengths.max()), dtype=torch.long)
        for row, line in zip(x, lines, strict=True):
            row[: len(line)] = torch.frombuffer(bytearray(line), dtype=torch.uint8)
        return Split(x, torch.empty(0), lengths)

    def answers(self, outputs: Outputs, scores: Tensor, split: Split, encoding: dict[str, Any]) -> dict[str, list[Any]]:
        """For every line the three likeliest next bytes, and the bits a byte that the line itself cost."""
        assert split.lengths is not None
        columns: dict[str, list[Any]] = {"line": [], "bits_per_byte": [], "next": []}
        for line, row, length in zip(split.x, scores, split.lengths.tolist(), strict=True):
            bits = -row.log_softmax(-1) / math.log(2)
            cost = bits[: length - 1].gather(-1, line[1:length, None]).mean() if length > 1 else torch.tensor(math.nan)
            best = row[length - 1].softmax(-1).topk(3)
            likely = " ".join(f"{chr(i)!r} {p:.2f}" for p, i in zip(*map(Tensor.tolist, best), strict=True))
            shown = bytes(line[:length].tolist()).decode("utf-8", "replace")
            for name, value in zip(columns, (shown, round(float(cost), 3), likely), strict=True):
                columns[name].append(value)
        return columns


def read_text(path: Path) -> bytes:
    """The bytes of a text file.

    Raises:
        UserError: for a file that is missing, empty, or binary (it holds a NUL byte).
    """
    check_file(path, "text", Text.suffixes)
    text = path.read_bytes()
    if b"\0" in text:
        raise UserError(f"{path} is binary: byte {text.index(0):,} is NUL; give plain text, in UTF-8 best")
    if not text.strip():
        raise UserError(f"{path} holds nothing but white space; put some text into it")
    return text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")


def unique_paragraphs(text: bytes) -> list[bytes]:
    """The paragraphs in order, each the first time that it stands there, without white space around it.

    A text without empty lines is cut at its lines.
    """
    paragraphs = [p.strip() for p in text.split(b"\n\n")]
    if len(paragraphs) < 10:
        paragraphs = [p.strip() for p in text.split(b"\n")]
    return list(dict.fromkeys(p for p in paragraphs if p))


def split(paragraphs: list[bytes], request: Request) -> Parts:
    """The paragraphs' numbers in three parts."""
    return shuffled(len(paragraphs), request, "different paragraphs")


def windows(text: bytes, N: int) -> Split:
    """``x`` and ``y`` (windows, N): every byte is asked for once, but for the rest that fills no window."""
    whole = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    count = (len(whole) - 1) // N
    return Split(whole[: count * N].view(count, N), whole[1 : count * N + 1].view(count, N))


@functools.cache
def standard_library() -> bytes:
    """The English inside Python: pydoc's topics, then the docstrings of the standard library; nothing is imported."""
    from pydoc_data.topics import topics

    found = [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(inside):
            found += docstrings(path)
    return "\n\n".join(found).encode()


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file, without their indentation; none of a file that cannot be parsed."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node)
            if said:
                yield said


def baselines(train: bytes, validation: bytes, test: bytes) -> list[Baseline]:
    """Bits per byte of the test text by a byte n-gram and by two compressors that know the training text.

    The n-gram is interpolated (Witten and Bell 1991) and chooses its order on the validation text. A compressor's
    number is what the test text adds to the compressed training text; zlib can look back 32 KiB only.
    """
    chosen = min(range(1, ORDER + 1), key=lambda order: ngram_bits(train, validation, order))
    return [
        Baseline(f"byte {chosen + 1}-gram", {"bits_per_byte": ngram_bits(train, test, chosen)}),
        Baseline("lzma", {"bits_per_byte": _added(lambda text: lzma.compress(text, preset=6), train, test)}),
        Baseline("zlib", {"bits_per_byte": _added(lambda text: zlib.compress(text, 9), train, test)}),
    ]


def ngram_bits(train: bytes, test: bytes, order: int) -> float:
    """Bits per byte of ``test`` by contexts of up to ``order`` bytes, interpolated by Witten and Bell's weights.

    The probability after a context c that was seen n times with t different followers is
    (count + t * p_shorter) / (n + t); the shortest is uniform over 256.
    """
    p = np.full(len(test), 1 / 256)
    for size in range(order + 1):
        followed, in_all, different = _tables(train, size)
        contexts, pairs = _codes(test, size)
        n, t = in_all[contexts], different[contexts]
        p[size:] = np.where(n > 0, (followed[pairs] + t * p[size:]) / np.maximum(n + t, 1), p[size:])
    return float(-np.log2(p).mean())


class _Table:
    """How often every key stood there: sorted keys, and their numbers."""

    def __init__(self, keys: Codes, counts: Codes) -> None:
        self.keys, self.counts = keys, counts

    def __getitem__(self, wanted: Codes) -> Codes:
        at = np.searchsorted(self.keys, wanted).clip(max=max(0, len(self.keys) - 1))
        return np.where(self.keys[at] == wanted, self.counts[at], 0)


def _tables(text: bytes, size: int) -> tuple[_Table, _Table, _Table]:
    """Of contexts of ``size`` bytes: each with its follower, each in all, and the different followers of each."""
    pairs, counts = np.unique(_codes(text, size)[1], return_counts=True)
    contexts, first = np.unique(pairs >> 8, return_index=True)
    in_all = np.add.reduceat(counts, first)
    different = np.diff(np.append(first, len(pairs)))
    return _Table(pairs, counts), _Table(contexts, in_all), _Table(contexts, different)


def _codes(text: bytes, size: int) -> tuple[Codes, Codes]:
    """Every context of ``size`` bytes as one number, and the same with the byte that follows."""
    values = np.frombuffer(text, np.uint8).astype(np.int64)
    count = len(values) - size
    contexts = np.zeros(count, np.int64)
    for i in range(size):
        contexts = contexts << 8 | values[i : i + count]
    return contexts, contexts << 8 | values[size:]


def _added(compress: Callable[[bytes], bytes], train: bytes, test: bytes) -> float:
    return 8 * (len(compress(train + test)) - len(compress(train))) / len(test)
