"""Baselines for text: byte n-grams and compressors."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from attnlab.tasks.base import Baseline

Codes = NDArray[np.int64]

ORDER = 5
"""The longest context of the n-gram, in bytes."""
MAX_TRAIN, MAX_VALIDATION, MAX_TEST = 2**22, 2**18, 2**20
"""Bytes that the baselines use, to limit their time."""


def baselines(train: bytes, validation: bytes, test: bytes) -> list[Baseline]:
    """Bits per byte of the test text by a byte n-gram and by two compressors that have compressed the training text.

    The n-gram is interpolated (Witten and Bell 1991), and its order is selected on the validation text. The value of a
    compressor is what the test text adds to the size of the compressed training text; the window of zlib is only
    32 KiB. Of long texts, the last 4 MiB of the training text and the first MiB of the test text are used, as their
    names state.
    """
    bounds = [f"{len(train[-MAX_TRAIN:]) >> 20} MiB of training text"] if len(train) > MAX_TRAIN else []
    bounds += [f"{MAX_TEST >> 20} MiB of test text"] if len(test) > MAX_TEST else []
    name = f" ({', '.join(bounds)})" if bounds else ""
    train, validation, test = train[-MAX_TRAIN:], validation[:MAX_VALIDATION], test[:MAX_TEST]
    on_validation, on_test = ngram_bits(train, [validation, test], ORDER).T
    order = int(on_validation[1:].argmin()) + 1
    bits = {
        f"byte {order + 1}-gram": float(on_test[order]),
        "lzma": _added(lambda text: lzma.compress(text, preset=6), train, test),
        "zlib": _added(lambda text: zlib.compress(text, 9), train, test),
    }
    return [Baseline(method + name, {"bits_per_byte": value}) for method, value in bits.items()]


def ngram_bits(train: bytes, texts: Sequence[bytes], highest: int) -> NDArray[np.float64]:
    """(highest + 1, texts): bits per byte of each text with contexts of up to 0, 1, 2 ... bytes.

    The probability after a context that occurred n times with t different next bytes is
    (count + t * p_shorter) / (n + t); the shortest is uniform over 256 (Witten and Bell 1991).
    """
    probabilities = [np.full(len(text), 1 / 256) for text in texts]
    bits = np.zeros((highest + 1, len(texts)))
    for size in range(highest + 1):
        tables = _tables(train, size) if size < len(train) else None
        for column, (text, p) in enumerate(zip(texts, probabilities, strict=True)):
            if tables is not None and size < len(text):
                followed, in_all, different = tables
                contexts, pairs = _codes(text, size)
                n, t = _count(*in_all, contexts), _count(*different, contexts)
                p[size:] = np.where(n > 0, (_count(*followed, pairs) + t * p[size:]) / np.maximum(n + t, 1), p[size:])
            bits[size, column] = -np.log2(p).mean()
    return bits


def _count(keys: Codes, counts: Codes, queries: Codes) -> Codes:
    """The counts of queries, given sorted keys and their counts; 0 for other keys."""
    index = np.searchsorted(keys, queries).clip(max=max(0, len(keys) - 1))
    return np.where(keys[index] == queries, counts[index], 0)


def _tables(text: bytes, size: int) -> tuple[tuple[Codes, Codes], ...]:
    """Counts of contexts of ``size`` bytes with their next byte, of contexts, and of different next bytes."""
    pairs, counts = np.unique(_codes(text, size)[1], return_counts=True)
    contexts, first = np.unique(pairs >> 8, return_index=True)
    different = np.diff(np.append(first, len(pairs)))
    return (pairs, counts), (contexts, np.add.reduceat(counts, first)), (contexts, different)


def _codes(text: bytes, size: int) -> tuple[Codes, Codes]:
    """Every context of ``size`` bytes as one integer, and the same with the next byte."""
    values = np.frombuffer(text, np.uint8).astype(np.int64)
    count = len(values) - size
    contexts = np.zeros(count, np.int64)
    for i in range(size):
        contexts = contexts << 8 | values[i : i + count]
    return contexts, contexts << 8 | values[size:]


def _added(compress: Callable[[bytes], bytes], train: bytes, test: bytes) -> float:
    return 8 * (len(compress(train + test)) - len(compress(train))) / len(test)
