"""ListOps: nested operations on lists of digits."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import Integers, compacted, synthetic
from attnlab.tasks.base import Baseline, Split, Task, TaskConfig, TaskData

DIGITS = 10
OPERATIONS = ("MIN", "MAX", "MED", "SM")
"""Minimum, maximum, median (rounded down) and sum modulo 10; their tokens follow those of the digits."""
CLOSE, BLANK = DIGITS + len(OPERATIONS), DIGITS + len(OPERATIONS) + 1
"""The tokens of a closing bracket, and of the space before a short expression."""
ARGUMENTS = 3
"""The largest number of arguments; the smallest is 2."""
NESTED = 0.3
"""The probability that an argument is an operation."""
LENGTH = 12
LONGEST = 160
"""Longer expressions would take long to draw."""


class ListOps(Task):
    """The value of an expression of nested operations; it is a digit.

    ::

        x   _ _ _ [SM 7 [MAX 2 9 ] 4 ]
        y   0

    A token is a digit, an operation with its opening bracket, a closing bracket, or a blank before a short expression.
    The operations are minimum, maximum, median (rounded down) and sum modulo 10, of 2 or 3 arguments. ``seq_length``
    limits the expressions, and so their depth.

    Source: Nangia and Bowman 2018, "ListOps: A Diagnostic Dataset for Latent Tree Learning" (arXiv 1804.06028), whose
    expressions are deeper and have up to 5 arguments.
    """

    summary = "the value of nested operations on digits: minimum, maximum, median and sum modulo 10"
    fresh_data = True
    threshold = 0.6
    defaults = {"epochs": 6, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random expressions of at most ``seq_length`` tokens."""
        check_options(config, "listops", "seq_length", "test_length")
        lengths = check_lengths(config, "listops", LENGTH, 5, LONGEST)
        return synthetic(
            config,
            lengths,
            expressions,
            symbols=BLANK + 1,
            outputs=Outputs("classes", DIGITS),
            pool="last",
            summary=f"expressions of at most {lengths.train} tokens",
            baselines=baselines,
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """Digits, operations such as ``[MIN``, ``]``, and ``_`` for a blank."""
        names = [*map(str, range(DIGITS)), *(f"[{name}" for name in OPERATIONS), "]", "_"]
        return [names[token] for token in x.tolist()]


def expressions(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
    """``x`` (count, N), expressions of at most N tokens, and their values ``y`` (count, 1)."""
    depth, longest = 1, 2 + ARGUMENTS
    while longest < N:
        depth, longest = depth + 1, 2 + ARGUMENTS * longest
    x, y = np.empty((0, N), np.int64), np.empty(0, np.int64)
    while len(x) < count:  # expressions that are too long are drawn again
        tokens, values = operations(generator, count, depth)
        fits = (tokens >= 0).sum(1) <= N
        x = np.concatenate([x, compacted(tokens[fits], N, BLANK)])
        y = np.concatenate([y, values[fits]])
    return x[:count], y[:count, None]


def operations(generator: np.random.Generator, count: int, depth: int) -> tuple[Integers, Integers]:
    """Operations whose arguments have smaller depths: tokens (count, M), with -1 between them, and values (count,)."""
    operation = generator.integers(0, len(OPERATIONS), count)
    digits = generator.integers(0, DIGITS, (count, ARGUMENTS))
    given = np.arange(ARGUMENTS) < generator.integers(2, ARGUMENTS + 1, (count, 1))
    parts = [DIGITS + operation[:, None]]
    for i in range(ARGUMENTS):
        tokens = digits[:, i : i + 1]
        if depth > 1:
            inner, values = operations(generator, count, depth - 1)
            nested = generator.random(count) < NESTED
            tokens = np.where(
                nested[:, None], inner, np.pad(tokens, ((0, 0), (0, inner.shape[1] - 1)), constant_values=-1)
            )
            digits[:, i] = np.where(nested, values, digits[:, i])
        parts.append(np.where(given[:, i : i + 1], tokens, -1))
    parts.append(np.full((count, 1), CLOSE))
    known = np.where(given, digits, np.nan)
    results = (np.nanmin(known, 1), np.nanmax(known, 1), np.nanmedian(known, 1) // 1, np.nansum(known, 1) % DIGITS)
    return np.concatenate(parts, axis=1), np.choose(operation, results).astype(np.int64)


def baselines(test: Split) -> list[Baseline]:
    """The most frequent value for the first operation alone, and chance."""
    x, y = test.x, test.y[:, 0]
    first = x.gather(1, (x != BLANK).long().argmax(1, keepdim=True))[:, 0] - DIGITS
    hits = sum(int(y[first == i].bincount(minlength=DIGITS).max()) for i in range(len(OPERATIONS)))
    return [
        Baseline("the most frequent value of the outer operation", {"accuracy": hits / len(y)}),
        Baseline("chance", {"accuracy": 1 / DIGITS}),
    ]
