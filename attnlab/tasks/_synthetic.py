"""Tasks with random examples."""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_lowercase
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import Lengths
from attnlab.tasks.base import IGNORE, Baseline, Split, TaskConfig, TaskData

Integers = NDArray[np.int64]
Draw = Callable[[np.random.Generator, int, int], tuple[Integers, Integers]]
"""Makes ``count`` examples of N tokens, ``x`` and ``y``, with a generator: draw(generator, count, N)."""

TRAIN = 16_000
"""Training examples."""
TEST = 2_000
"""Test examples: enough to distinguish accuracies that differ by 0.03."""
LONGEST = 100_000
"""The longest sequence that the tasks accept."""


def synthetic(
    config: TaskConfig,
    lengths: Lengths,
    draw: Draw,
    *,
    symbols: int,
    outputs: Outputs,
    summary: str,
    baselines: Callable[[Split], list[Baseline]],
    causal: bool = False,
    pool: Literal["mean", "last"] = "mean",
) -> TaskData:
    """Random examples as task data.

    Training, validation and test data have their own random streams, so that the training and validation data do not
    depend on the length of the test data.

    Args:
        config: the seed of the streams; there are ``val_fraction`` × `TRAIN` additional validation examples.
        lengths: tokens per sequence.
        draw: makes the examples.
        symbols: the number of different input tokens.
        outputs: of the network.
        summary: one line: what was drawn.
        baselines: computes the baselines from the test data.
        causal: whether the network must be causal.
        pool: how the network pools a sequence.
    """

    def split(stream: int, count: int, N: int) -> Split:
        x, y = draw(np.random.default_rng([config.seed, stream]), count, N)
        return Split(torch.from_numpy(x), torch.from_numpy(y))

    validation, test = max(1, round(config.val_fraction * TRAIN)), split(2, TEST, lengths.test)
    longer = f"; {lengths.test} tokens in the test data" if lengths.test != lengths.train else ""
    return TaskData(
        split(0, TRAIN, lengths.train),
        split(1, validation, lengths.train),
        test,
        inputs=Inputs("tokens", symbols),
        outputs=outputs,
        length=max(lengths),
        metric="accuracy",
        causal=causal,
        pool=pool,
        summary_lines=(summary + longer,),
        baselines=lambda: baselines(test),
    )


def letter(symbol: int) -> str:
    """The name of a symbol: a letter, or its number from 26 on."""
    return ascii_lowercase[symbol] if symbol < len(ascii_lowercase) else str(symbol)


def distinct(generator: np.random.Generator, weights: NDArray[np.floating], count: int, size: int) -> Integers:
    """(count, size) indices, sampled in each row without replacement with probabilities proportional to ``weights``.

    The largest log-weights plus Gumbel noise are such a sample (Vieira 2014).
    """
    scores = np.log(weights) + generator.gumbel(size=(count, len(weights)))
    return np.argsort(-scores, axis=1)[:, :size]


def one_per_symbol(x: Integers, symbols: int) -> Integers:
    """One-hot encoding: (...) integers from 0 to ``symbols`` - 1 as (..., symbols) zeros and ones."""
    return np.eye(symbols, dtype=np.int64)[x]


def compacted(tokens: Integers, N: int, filler: int) -> Integers:
    """The last N tokens of every row of (B, M) that are not -1, in order, with ``filler`` before them if fewer."""
    order = np.argsort(tokens >= 0, axis=1, kind="stable")[:, -N:]
    moved = np.take_along_axis(tokens, order, axis=1)
    moved = np.where(moved < 0, filler, moved)
    return np.pad(moved, ((0, 0), (N - moved.shape[1], 0)), constant_values=filler)


def most_common(test: Split, symbols: int) -> float:
    """The accuracy of answering every target with the most common input below ``symbols`` of its sequence."""
    x, y = test.x.numpy(), test.y.numpy()
    counts = np.zeros((len(x), symbols), np.int64)
    rows, columns = np.nonzero(x < symbols)
    np.add.at(counts, (rows, x[rows, columns]), 1)
    targets = y != IGNORE
    return float((counts.argmax(1)[:, None] == y)[targets].mean())


def most_common_so_far(test: Split, low: int, high: int) -> float:
    """The accuracy of answering every target with the most common input so far from ``low`` to ``high`` - 1."""
    x, y = test.x.numpy(), test.y.numpy()
    counts = np.zeros((len(x), int(x.max()) + 1), np.int64)
    hits = 0
    for i in range(x.shape[1]):
        counts[np.arange(len(x)), x[:, i]] += 1
        hits += int((low + counts[:, low:high].argmax(1) == y[:, i]).sum())
    return hits / int((y != IGNORE).sum())
