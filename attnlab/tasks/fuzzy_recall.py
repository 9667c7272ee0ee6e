"""Fuzzy in-context recall: keys and values of several tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options, check_vocabulary
from attnlab.tasks._synthetic import LONGEST, Integers, compacted, letter, most_common_so_far, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData

VOCABULARY = 16
LENGTH = 36
PAIRS = 3
LONGEST_KEY = 3
"""Tokens per key, and per value, at most."""


class FuzzyRecall(Task):
    """Key-value pairs that repeat, whose keys and values are 1 to 3 tokens long; after a repeated key, write its value.

    With N = 13; the dots have no target::

        x   a c 7 b 4 4 9 a c 7 b 4 4
        y   . . . . . . . . 7 . 4 4 9

    A key is all adjacent tokens of the lower half of the vocabulary, and a value all adjacent tokens of the upper. One
    token can be a key, and a part of another.

    Source: Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), with a
    target at every repeated key, and keys of all lengths in the test data.
    """

    summary = "recall values of 1 to 3 tokens by keys of 1 to 3 tokens (MAD)"
    fresh_data = True
    threshold = 0.9
    defaults = {"causal": True, "epochs": 4, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; a key and its value take up to six tokens."""
        check_options(config, "fuzzy_recall", "seq_length", "test_length", "pairs", "vocabulary")
        lengths = check_lengths(config, "fuzzy_recall", LENGTH, 4 * LONGEST_KEY, LONGEST)
        vocabulary = VOCABULARY if config.vocabulary is None else config.vocabulary
        pairs = min(PAIRS, vocabulary // 2) if config.pairs is None else config.pairs
        check_vocabulary("fuzzy_recall", vocabulary, pairs, 2 * pairs)

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            return fuzzy_recall(generator, count, N, pairs, vocabulary)

        keys = vocabulary // 2
        return synthetic(
            config,
            lengths,
            draw,
            symbols=vocabulary + 1,
            outputs=Outputs("tokens", vocabulary),
            causal=True,
            summary=f"{pairs} keys and values of 1 to {LONGEST_KEY} tokens out of {vocabulary}; {lengths.train} tokens",
            baselines=lambda test: [
                Baseline(
                    "the most common value token so far",
                    {"accuracy": most_common_so_far(test, keys, vocabulary)},
                ),
                Baseline("chance", {"accuracy": 1 / (vocabulary - keys)}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """Keys as letters, values as numbers, and ``_`` for a blank."""
        vocabulary = inputs.size - 1
        half = vocabulary // 2
        return [
            "_" if token == vocabulary else letter(token) if token < half else str(token - half) for token in x.tolist()
        ]


def fuzzy_recall(
    generator: np.random.Generator, count: int, N: int, pairs: int, vocabulary: int
) -> tuple[Integers, Integers]:
    """``x`` and ``y`` (count, N); the last key is a repeated one, and before the first are blanks, ``vocabulary``."""
    half, slots, rows = vocabulary // 2, N // (2 * LONGEST_KEY), np.arange(count)
    keys = motifs(generator, 0, half, (count, pairs))
    while (same := equal_keys(keys)).any():
        keys[same] = motifs(generator, 0, half, (int(same.sum()), pairs))
    values = motifs(generator, half, vocabulary, (count, pairs))
    which = generator.integers(0, pairs, (count, slots))
    which[:, -1] = which[rows, generator.integers(0, slots - 1, count)]
    seen, repeated = np.zeros((count, pairs), bool), np.zeros((count, slots), bool)
    for i in range(slots):
        repeated[:, i] = seen[rows, which[:, i]]
        seen[rows, which[:, i]] = True
    written = np.concatenate([keys, values], axis=2)[rows[:, None], which]  # (count, slots, 6)
    target = np.broadcast_to(np.arange(2 * LONGEST_KEY) >= LONGEST_KEY, written.shape) & repeated[:, :, None]
    kept = written.reshape(count, -1) >= 0
    x = compacted(written.reshape(count, -1), N, vocabulary)
    y = compacted(np.where(kept, np.where(target, written, vocabulary).reshape(count, -1), -1), N, vocabulary)
    y = np.concatenate([y[:, 1:], np.full((count, 1), vocabulary)], axis=1)  # each token predicts the next
    return x, np.where(y == vocabulary, IGNORE, y)


def motifs(generator: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> Integers:
    """(*shape, 3) sequences of 1 to 3 random tokens from ``low`` to ``high`` - 1, then -1."""
    tokens = generator.integers(low, high, (*shape, LONGEST_KEY))
    return np.where(np.arange(LONGEST_KEY) < generator.integers(1, LONGEST_KEY + 1, (*shape, 1)), tokens, -1)


def equal_keys(keys: Integers) -> NDArray[np.bool_]:
    """Whether two of the keys (B, pairs, 3) of a sequence are equal, (B,)."""
    codes = np.sort(keys @ (int(keys.max()) + 2) ** np.arange(LONGEST_KEY), axis=1)
    return (np.diff(codes, axis=1) == 0).any(1)
