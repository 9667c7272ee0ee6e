"""Multi-query associative recall (MQAR): key-value pairs, then the keys again as queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options, check_vocabulary
from attnlab.tasks._synthetic import LONGEST, Integers, distinct, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

VOCABULARY = 128
LENGTH = 64
POWER = 0.01


class Recall(Task):
    """Key-value pairs, then each key once more, whose value is the target.

    With two pairs and N = 16 (dots are random filler without a target)::

        x   2 8 4 7 . . 4 . . . . . 2 . . .
        y               7           8

    Keys come from the lower half of the vocabulary and values from the upper; by default there are N / 8 pairs. The
    distance between the pairs and a query follows a power law. Longer test sequences have as many pairs, and more
    filler. By default all filler is random, so that it may contradict a pair; with ``noise``, that fraction of it is
    random but never repeats a key, and the rest is token 0.

    Source: Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models"
    (arXiv 2312.04927), with its defaults except a vocabulary of 128 in place of 8,192.
    """

    summary = "recall the value of each key: multi-query associative recall (MQAR of Zoology)"
    fresh_data = True
    defaults = {"causal": True, "epochs": 8, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; a pair needs four tokens, and its own key and value."""
        check_options(config, "recall", "seq_length", "test_length", "pairs", "vocabulary", "noise")
        lengths = check_lengths(config, "recall", LENGTH, 4, LONGEST, even="keys and values come in pairs")
        pairs = max(1, lengths.train // 8) if config.pairs is None else config.pairs
        vocabulary = VOCABULARY if config.vocabulary is None else config.vocabulary
        check_vocabulary("recall", vocabulary, pairs, 2 * (pairs + 1))
        if 4 * pairs > min(lengths):
            raise UserError(
                f"recall with {pairs:,} pairs needs sequences of at least {4 * pairs:,} tokens, four for each, not "
                f"{min(lengths):,}; set --seq_length, --test_length or --pairs"
            )

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            return mqar(generator, count, N, pairs, vocabulary, config.noise)

        values = vocabulary // 2
        return synthetic(
            config,
            lengths,
            draw,
            symbols=vocabulary,
            outputs=Outputs("tokens", vocabulary),
            causal=True,
            summary=f"{pairs} pairs out of {values - 1} keys and {values} values; {lengths.train} tokens",
            baselines=lambda test: [
                Baseline("one of the sequence's values", {"accuracy": 1 / pairs}),
                Baseline("any value", {"accuracy": 1 / values}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """``k5`` for the key 5, ``v7`` for the value 7, and 0 for filler without a key."""
        half = inputs.size // 2
        return [f"v{token - half}" if token >= half else f"k{token}" if token else "0" for token in x.tolist()]


def mqar(
    generator: np.random.Generator,
    count: int,
    N: int,
    pairs: int,
    vocabulary: int = VOCABULARY,
    noise: float | None = None,
) -> tuple[Integers, Integers]:
    """``x`` and ``y`` (count, N) of multi-query associative recall.

    ``noise`` is the fraction of the filler that is random, but no key of the sequence; the rest is token 0. By default
    all filler is random.
    """
    half = vocabulary // 2
    keys = 1 + distinct(generator, np.ones(half - 1), count, pairs)
    values = half + distinct(generator, np.ones(half), count, pairs)

    # After the pairs, every second position can hold a query; position i with probability ~ i^(POWER - 1).
    gaps = np.arange(1, (N - 2 * pairs) // 2 + 1) ** (POWER - 1)
    queries = 2 * pairs + 2 * distinct(generator, gaps, count, pairs)

    x = generator.integers(0, vocabulary, (count, N))
    if noise is not None:
        used = np.zeros((count, vocabulary), bool)
        np.put_along_axis(used, keys, True, axis=1)
        x[np.take_along_axis(used, x, axis=1) | (generator.random((count, N)) >= noise)] = 0
    x[:, 0 : 2 * pairs : 2] = keys
    x[:, 1 : 2 * pairs : 2] = values
    np.put_along_axis(x, queries, keys, axis=1)
    y = np.full((count, N), IGNORE)
    np.put_along_axis(y, queries, values, axis=1)
    return x, y
