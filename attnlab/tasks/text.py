"""Byte-level language modelling: what is the next byte?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks import _corpus
from attnlab.tasks._corpus import Corpus, corpus, read_text
from attnlab.tasks._requests import length_within, takes
from attnlab.tasks._text_baselines import baselines
from attnlab.tasks.base import Split, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

LENGTH = 128
LONGEST = 100_000
"""The longest window in bytes, also of a network that was made for more."""
_BATCH = 128
"""Windows of lines that are scored at one time."""


class Text(Task):
    """Every byte from those before it; the loss in bits is how far the text can be compressed.

    ::

        x   T h e   c a
        y   h e   c a t

    The text is split by paragraphs, by lines, or at two positions (``--split_by``), and its bytes are kept as they
    are. All copies of a paragraph are in the same part, because one that stood in the training and in the test text
    would be predicted by heart. The default is English that ships inside Python: the help topics of ``pydoc`` and the
    docstrings of the standard library, each paragraph once, as they are in the Python that runs (the SHA-256 is
    printed and recorded).
    """

    summary = "the next byte of English text, or of your own .txt: bits per byte"
    caveat = (
        "the compressors and the n-gram see the same training text, at most 4 MiB of it; "
        "a byte of English needs 8 bits uncompressed"
    )
    own_data = "this Python's documentation"
    suffixes = (".txt",)
    defaults = {"causal": True, "epochs": 3, "embed_dim": 128, "learning_rate": 2e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Lines or paragraphs to three parts, each cut into windows of ``seq_length`` bytes (128).

        Raises:
            UserError: for a file that is missing, empty, binary or too short.
        """
        takes(config, "text", "seq_length", "data", "split_by")
        N = length_within(config, "text", LENGTH, 2, LONGEST)
        text = python_documentation(config) if config.data is None else own_text(config.data, config)
        parts = text.parts(config)
        shortest = min(map(len, parts))
        if shortest <= N:
            raise UserError(
                f"{text.source} leaves {shortest:,} bytes for one of the three parts, too few for a --seq_length of "
                f"{N}; give a longer text, or a smaller --seq_length"
            )
        train, validation, test = (windows(part, N) for part in parts)
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("tokens", 256),
            outputs=Outputs("tokens", 256),
            length=N,
            metric="bits_per_byte",
            causal=True,
            encoding={"bytes": True, "sha256": text.sha256, "split_by": text.unit},
            summary_lines=text.summary_lines,
            baselines=lambda: baselines(*parts),
        )

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """A .txt file cut into windows of ``length`` bytes, or of all that a shorter file has.

        Raises:
            UserError: for a file that is missing, empty or binary.
        """
        text = read_text(path)
        if len(text) < 2:
            raise UserError(f"{path} holds one byte, which nothing precedes that could predict it; add more")
        return windows(text, min(length, LONGEST, len(text) - 1))

    def predict(
        self, network: Network, path: Path, encoding: dict[str, Any], score: Callable[[Split], Tensor]
    ) -> dict[str, list[Any]]:
        """A row per line of a .txt file, empty ones included.

        ``bits_per_byte`` is what the line costs by itself: the mean over its bytes after the first, None where there
        are none; ``bytes`` is its length, and ``next`` the three likeliest bytes to follow it. Of a line that is longer
        than the network's length every byte is scored once, from at least half that length before it.

        Raises:
            UserError: for a file that is missing, empty or binary.
        """
        lines = read_text(path).splitlines()
        bits, following = [0.0] * len(lines), [""] * len(lines)
        longest = min(network.length, LONGEST)
        pieces = (p for number, line in enumerate(lines) for p in line_windows(number, len(line), longest))
        while batch := list(itertools.islice(pieces, _BATCH)):
            x = torch.zeros(len(batch), max(p.stop - p.start for p in batch), dtype=torch.long)
            for row, p in zip(x, batch, strict=True):
                row[: p.stop - p.start] = tokens(lines[p.line][p.start : p.stop])
            for costs, p in zip(-score(Split(x, torch.empty(0))).log_softmax(-1), batch, strict=True):
                line, first = lines[p.line], p.asked - p.start
                after = line[p.asked + 1 : p.stop + 1]
                if after:
                    cost = costs[first : first + len(after)].gather(-1, tokens(after)[:, None])
                    bits[p.line] += float(cost.double().sum()) / math.log(2)
                if p.stop == len(line):
                    following[p.line] = likeliest(costs[p.stop - p.start - 1])
        costs_a_byte = [b / (len(line) - 1) if len(line) > 1 else None for b, line in zip(bits, lines, strict=True)]
        return {
            "line": list(map(decoded, lines)),
            "bits_per_byte": costs_a_byte,
            "bytes": list(map(len, lines)),
            "next": following,
        }


def own_text(path: Path, config: TaskConfig) -> Corpus:
    """The user's own text.

    Raises:
        UserError: for a file that is missing, empty or binary.
    """
    return corpus(read_text(path), str(path), config.split_by)


def python_documentation(config: TaskConfig) -> Corpus:
    """The English inside Python."""
    source = "Python's own help topics and docstrings"
    units = [paragraph + b"\n\n" for paragraph in _corpus.standard_library()]
    units[-1] = units[-1].removesuffix(b"\n\n")
    if config.split_by not in (None, "paragraphs"):
        return corpus(b"".join(units), source, config.split_by)
    return Corpus(source, units, "paragraphs", "each paragraph once")


def windows(text: bytes, N: int) -> Split:
    """``x`` and ``y`` (windows, N): every byte is asked for once, but for the rest that fills no window."""
    whole = tokens(text)
    count = (len(whole) - 1) // N
    return Split(whole[: count * N].view(count, N), whole[1 : count * N + 1].view(count, N))


def tokens(text: bytes) -> Tensor:
    """The bytes of a text that is not empty as whole numbers (N,)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


class LineWindow(NamedTuple):
    """The bytes of a line from ``start`` to ``stop``; what follows those from ``asked`` on is scored."""

    line: int
    start: int
    stop: int
    asked: int


def line_windows(line: int, size: int, N: int) -> Iterator[LineWindow]:
    """Windows of at most N bytes that ask for what follows each byte of a line of ``size`` once."""
    asked = 0
    while asked < size:
        stop = min(size, asked + (max(1, N // 2) if asked else N))
        yield LineWindow(line, max(0, stop - N), stop, asked)
        asked = stop


def decoded(line: bytes) -> str:
    """A line that is to be shown: in UTF-8, and one that is not in Windows-1252, as Latin-1 text is read."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def likeliest(costs: Tensor) -> str:
    """The three likeliest bytes by their costs (256,), each with its probability."""
    best = (-costs).exp().topk(3)
    return " ".join(f"{chr(i)!r} {p:.2f}" for p, i in zip(*map(Tensor.tolist, best), strict=True))
