"""Compression: remember a whole sequence in one vector."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import Integers, letter, most_common, synthetic
from attnlab.tasks.base import Baseline, Task, TaskConfig, TaskData

VOCABULARY = 16
LENGTH = 13


class Compression(Task):
    """Random symbols, then a marker, whose output vector must contain all of them.

    With 4 symbols (letters here) and N = 7::

        x   c a d a b b >
        y   c a d a b b       (one class per symbol, read from the vector of the marker alone)

    Source: Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (MAD, arXiv 2403.17844), where an
    MLP reads the vector, in place of a linear layer.
    """

    summary = "remember a whole sequence in one vector (MAD)"
    fresh_data = True
    threshold = 0.95
    defaults = {"epochs": 3, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is the number of symbols and one more."""
        check_options(config, "compression", "seq_length", "vocabulary")
        lengths = check_lengths(config, "compression", LENGTH, 2, 1_000)
        symbols = VOCABULARY if config.vocabulary is None else config.vocabulary

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            y = generator.integers(0, symbols, (count, N - 1))
            return np.pad(y, ((0, 0), (0, 1)), constant_values=symbols), y

        return synthetic(
            config,
            lengths,
            draw,
            symbols=symbols + 1,
            outputs=Outputs("classes", symbols, lengths.train - 1),
            pool="last",
            summary=f"{lengths.train - 1} symbols out of {symbols}",
            baselines=lambda test: [
                Baseline("the most common of the symbols", {"accuracy": most_common(test, symbols)}),
                Baseline("chance", {"accuracy": 1 / symbols}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The symbols as letters, and ``>`` for the marker."""
        return [">" if token == inputs.size - 1 else letter(token) for token in x.tolist()]
