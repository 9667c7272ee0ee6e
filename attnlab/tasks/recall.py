"""Multi-query associative recall (MQAR): key-value pairs, then the keys again as queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_length, check_options
from attnlab.tasks._synthetic import Integers, draw_splits
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

VOCABULARY = 128
LENGTH = 64
TRAIN = 16_000
POWER = 0.01


class Recall(Task):
    """Key-value pairs, then each key once more, whose value is the target.

    With two pairs and N = 16 (dots are random filler without a target)::

        x   2 8 4 7 . . 4 . . . . . 2 . . .
        y               7           8

    Keys come from the lower half of the vocabulary and values from the upper; there are N / 8 pairs. The distance
    between the pairs and a query follows a power law.

    Source: Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models"
    (arXiv 2312.04927), with its defaults except a vocabulary of 128 in place of 8,192.
    """

    summary = "recall the value of each key: multi-query associative recall (MQAR of Zoology)"
    defaults = {"causal": True, "epochs": 8, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` must be even, and there must be N / 8 keys."""
        check_options(config, "recall", "seq_length")
        N = check_length(config, "recall", LENGTH, 8, 8 * (VOCABULARY // 2 - 1))
        if N % 2:
            raise UserError(f"--seq_length for recall must be even, not {N}: keys and values come in pairs")

        def draw(generator: np.random.Generator, count: int) -> tuple[Integers, Integers]:
            return mqar(generator, count, N, pairs=N // 8)

        splits = draw_splits(config, TRAIN, draw)
        return TaskData(
            *splits,
            inputs=Inputs("tokens", VOCABULARY),
            outputs=Outputs("tokens", VOCABULARY),
            length=N,
            metric="accuracy",
            causal=True,
            summary_lines=(
                f"{N // 8} pairs out of {VOCABULARY // 2 - 1} keys and {VOCABULARY // 2} values; {N} tokens",
            ),
            baselines=lambda: [
                Baseline("one of the sequence's values", {"accuracy": 1 / (N // 8)}),
                Baseline("any value", {"accuracy": 1 / (VOCABULARY // 2)}),
            ],
        )


def mqar(
    generator: np.random.Generator, count: int, N: int, pairs: int, vocabulary: int = VOCABULARY
) -> tuple[Integers, Integers]:
    """``x`` and ``y`` (count, N) of multi-query associative recall."""
    half = vocabulary // 2
    keys = 1 + _distinct(generator, np.ones(half - 1), count, pairs)
    values = half + _distinct(generator, np.ones(half), count, pairs)

    # After the pairs, every second position can hold a query; position i with probability ~ i^(POWER - 1).
    gaps = np.arange(1, (N - 2 * pairs) // 2 + 1) ** (POWER - 1)
    queries = 2 * pairs + 2 * _distinct(generator, gaps, count, pairs)

    x = generator.integers(0, vocabulary, (count, N))
    x[:, 0 : 2 * pairs : 2] = keys
    x[:, 1 : 2 * pairs : 2] = values
    np.put_along_axis(x, queries, keys, axis=1)
    y = np.full((count, N), IGNORE)
    np.put_along_axis(y, queries, values, axis=1)
    return x, y


def _distinct(generator: np.random.Generator, weights: NDArray[np.floating[Any]], count: int, size: int) -> Integers:
    """(count, size) indices, sampled in each row without replacement with probabilities proportional to ``weights``.

    The largest log-weights plus Gumbel noise are such a sample (Vieira 2014).
    """
    scores = np.log(weights) + generator.gumbel(size=(count, len(weights)))
    return np.argsort(-scores, axis=1)[:, :size]
