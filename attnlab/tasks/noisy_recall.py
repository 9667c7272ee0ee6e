"""Noisy in-context recall: key-value pairs between noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options, check_vocabulary
from attnlab.tasks._synthetic import LONGEST, Integers, distinct, letter, most_common_so_far, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData

VOCABULARY = 16
NOISE_SYMBOLS = 16
LENGTH = 32
PAIRS = 4
NOISE = 0.2


class NoisyRecall(Task):
    """Key-value pairs that repeat, with noise between them; at every repeated key, predict its value.

    With N = 12; ``-`` is noise, and dots have no target::

        x   c 7 a 4 - - c 7 - - a 4
        y   . . . . . . 7 . . . 4 .

    Keys come from the lower half of the vocabulary, values from the upper, and noise from 16 other symbols. Noise
    also comes in pairs, so that every key is at an even position. ``noise`` is the fraction of noise.

    Source: Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), with a
    target at every repeated key.
    """

    summary = "recall the value of each repeated key, between noise (MAD)"
    fresh_data = True
    threshold = 0.98
    defaults = {"causal": True, "epochs": 2, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is even."""
        check_options(config, "noisy_recall", "seq_length", "test_length", "pairs", "vocabulary", "noise")
        lengths = check_lengths(config, "noisy_recall", LENGTH, 4, LONGEST, even="keys and values come in pairs")
        vocabulary = VOCABULARY if config.vocabulary is None else config.vocabulary
        pairs = min(PAIRS, vocabulary // 2) if config.pairs is None else config.pairs
        noise = NOISE if config.noise is None else config.noise
        check_vocabulary("noisy_recall", vocabulary, pairs, 2 * pairs)

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            return noisy_recall(generator, count, N, pairs, vocabulary, noise)

        keys = vocabulary // 2
        return synthetic(
            config,
            lengths,
            draw,
            symbols=vocabulary + NOISE_SYMBOLS,
            outputs=Outputs("tokens", vocabulary),
            causal=True,
            summary=f"{pairs} pairs out of {keys} keys and {vocabulary - keys} values; {lengths.train} tokens, "
            f"{noise:.0%} of them noise",
            baselines=lambda test: [
                Baseline("the most common value so far", {"accuracy": most_common_so_far(test, keys, vocabulary)}),
                Baseline("chance", {"accuracy": 1 / (vocabulary - keys)}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """Keys as letters, values as numbers, and ``-`` for noise."""
        vocabulary = inputs.size - NOISE_SYMBOLS
        half = vocabulary // 2
        return [
            "-" if token >= vocabulary else letter(token) if token < half else str(token - half) for token in x.tolist()
        ]


def noisy_recall(
    generator: np.random.Generator, count: int, N: int, pairs: int, vocabulary: int, noise: float
) -> tuple[Integers, Integers]:
    """``x`` and ``y`` (count, N), which start with a pair and end with another whose key is repeated."""
    half, slots, rows = vocabulary // 2, N // 2, np.arange(count)
    keys = distinct(generator, np.ones(half), count, pairs)
    values = generator.integers(half, vocabulary, (count, pairs))
    is_noise = generator.random((count, slots)) < noise
    is_noise[:, 0] = is_noise[:, -1] = False
    which = generator.integers(0, pairs, (count, slots))
    earlier = np.where(is_noise[:, :-1], -1.0, generator.random((count, slots - 1))).argmax(1)
    which[:, -1] = which[rows, earlier]
    seen, repeated = np.zeros((count, pairs), bool), np.zeros((count, slots), bool)
    for i in range(slots):
        repeated[:, i] = seen[rows, which[:, i]] & ~is_noise[:, i]
        seen[rows, which[:, i]] |= ~is_noise[:, i]
    x = generator.integers(vocabulary, vocabulary + NOISE_SYMBOLS, (count, N))
    answers = np.take_along_axis(values, which, axis=1)
    x[:, 0::2] = np.where(is_noise, x[:, 0::2], np.take_along_axis(keys, which, axis=1))
    x[:, 1::2] = np.where(is_noise, x[:, 1::2], answers)
    y = np.full((count, N), IGNORE)
    y[:, 0::2] = np.where(repeated, answers, IGNORE)
    return x, y
