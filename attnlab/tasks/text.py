"""Byte-level language modelling: predict the next byte."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks.base import Split, Task, TaskConfig, TaskData
from attnlab.tasks.texts.baselines import baselines
from attnlab.tasks.texts.corpus import Corpus, Unit, corpus, read_text, standard_library
from attnlab.utils.errors import UserError

LENGTH = 128
LONGEST = 100_000
"""The longest window in bytes, even for networks with longer contexts."""
_BATCH = 128
"""Windows per batch of prediction."""


class Text(Task):
    """Predict every byte from the bytes before it. The loss in bits is the compressed size of the text.

    ::

        x   T h e   c a
        y   h e   c a t

    The text is split by paragraphs, by lines, or at two positions (``--split_by``); its bytes are not changed. All
    copies of a paragraph are in the same part, so that no test paragraph can be memorized from the training text. The
    default is English that ships with Python: the help topics of ``pydoc`` and the docstrings of the standard library,
    each paragraph once. They depend on the version of Python, so their SHA-256 is printed and recorded.
    """

    summary = "the next byte of English text, or of your own .txt: bits per byte"
    caveat = (
        "the compressors and the n-gram use the same training text, at most 4 MiB of it; "
        "uncompressed text has 8 bits per byte"
    )
    own_data = "this Python's documentation"
    suffixes = (".txt",)
    defaults = {"causal": True, "epochs": 3, "embed_dim": 128, "learning_rate": 2e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Three parts of lines or paragraphs, each cut into windows of ``seq_length`` bytes (128).

        Those of the test data have ``test_length`` bytes.
        """
        check_options(config, "text", "seq_length", "test_length", "data", "split_by")
        lengths = check_lengths(config, "text", LENGTH, 2, LONGEST)
        text = (
            python_documentation(config.split_by)
            if config.data is None
            else corpus(read_text(config.data), str(config.data), config.split_by)
        )
        parts = text.parts(config)
        sizes = zip(map(len, parts), (lengths.train, *lengths), strict=True)
        if too_short := [(size, N) for size, N in sizes if size <= N]:
            size, N = min(too_short)
            flag = "seq_length" if lengths.train == N else "test_length"
            raise UserError(
                f"{text.source} leaves {size:,} bytes for one of the three parts, too few for a --{flag} of {N}; give "
                f"a longer text, or a smaller --{flag}"
            )
        train, validation = (windows(part, lengths.train) for part in parts[:2])
        return TaskData(
            train,
            validation,
            windows(parts[2], lengths.test),
            inputs=Inputs("tokens", 256),
            outputs=Outputs("tokens", 256),
            length=max(lengths),
            metric="bits_per_byte",
            causal=True,
            encoding={"bytes": True, "sha256": text.sha256, "split_by": text.unit},
            summary_lines=text.summary_lines,
            baselines=lambda: baselines(*parts),
        )

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """A .txt file cut into windows of ``length`` bytes, or one window of a shorter file."""
        text = read_text(path)
        if len(text) < 2:
            raise UserError(f"{path} holds one byte, which cannot be predicted from earlier ones; add more")
        return windows(text, min(length, LONGEST, len(text) - 1))

    def predict(
        self, network: Network, path: Path, encoding: dict[str, Any], score: Callable[[Split], Tensor]
    ) -> dict[str, list[Any]]:
        """One row per line of a .txt file, including empty lines.

        ``bits_per_byte`` is the mean over the bytes of the line after the first, None if there are none; ``bytes`` is
        its length, and ``next`` the three most likely next bytes. In a line that is longer than the network's length,
        every byte is scored once, from a context of at least half that length.
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
                line, first = lines[p.line], p.first_scored - p.start
                after = line[p.first_scored + 1 : p.stop + 1]
                if after:
                    cost = costs[first : first + len(after)].gather(-1, tokens(after)[:, None])
                    bits[p.line] += float(cost.double().sum()) / math.log(2)
                if p.stop == len(line):
                    following[p.line] = most_likely(costs[p.stop - p.start - 1])
        bits_per_byte = [b / (len(line) - 1) if len(line) > 1 else None for b, line in zip(bits, lines, strict=True)]
        return {
            "line": list(map(decoded, lines)),
            "bits_per_byte": bits_per_byte,
            "bytes": list(map(len, lines)),
            "next": following,
        }

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The bytes as characters, and those that are no printable ASCII as hexadecimal numbers."""
        return [chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in x.tolist()]


def python_documentation(split_by: Unit | None) -> Corpus:
    """The English that ships with Python."""
    source, paragraphs = "Python's own help topics and docstrings", standard_library()
    if split_by not in (None, "paragraphs"):
        return corpus(b"\n\n".join(paragraphs), source, split_by)
    units = [*(paragraph + b"\n\n" for paragraph in paragraphs[:-1]), paragraphs[-1]]
    return Corpus(source, units, "paragraphs", "each paragraph once")


def windows(text: bytes, N: int) -> Split:
    """``x`` and ``y`` (windows, N): every byte is a target once, except the remainder that fills no window."""
    whole = tokens(text)
    count = (len(whole) - 1) // N
    return Split(whole[: count * N].view(count, N), whole[1 : count * N + 1].view(count, N))


def tokens(text: bytes) -> Tensor:
    """The bytes of a non-empty text as integers (N,)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


class LineWindow(NamedTuple):
    """The bytes of a line from ``start`` to ``stop``; the successors of those from ``first_scored`` on are scored."""

    line: int
    start: int
    stop: int
    first_scored: int


def line_windows(line: int, size: int, N: int) -> Iterator[LineWindow]:
    """Windows of at most N bytes in which the successor of each byte of a line of ``size`` is scored once."""
    scored = 0
    while scored < size:
        stop = min(size, scored + (max(1, N // 2) if scored else N))
        yield LineWindow(line, max(0, stop - N), stop, scored)
        scored = stop


def decoded(line: bytes) -> str:
    """A line as text: UTF-8 if it is valid, otherwise Windows-1252, the usual superset of Latin-1."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("cp1252", "replace")


def most_likely(costs: Tensor) -> str:
    """The three most likely bytes with their probabilities, from negative log-probabilities (256,)."""
    best = (-costs).exp().topk(3)
    return " ".join(f"{chr(i)!r} {p:.2f}" for p, i in zip(*map(Tensor.tolist, best), strict=True))
