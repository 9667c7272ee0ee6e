"""Induction: at a repeated token, predict the token that followed its last occurrence."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, letter, most_common_so_far, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData

SYMBOLS = 16
LENGTH = 32


class Induction(Task):
    """Random symbols; at every repeated symbol, predict the symbol that followed its last occurrence.

    ::

        x   c a f b a d f a c
        y           f   b d a

    One causal layer can attend to the earlier occurrence, but not to the token after it: for that, each token must
    first contain information about its predecessor. Two layers can solve the task; the pair of heads that does is
    called an induction head.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads" (arXiv 2209.11895).
    """

    summary = "repeat what followed the last occurrence: two layers can, one cannot (induction heads)"
    fresh_data = True
    defaults = {"causal": True, "epochs": 8, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is at least 4."""
        check_options(config, "induction", "seq_length", "test_length")
        lengths = check_lengths(config, "induction", LENGTH, 4, LONGEST)

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            x = generator.integers(0, SYMBOLS, (count, N))
            return x, followers(x)

        return synthetic(
            config,
            lengths,
            draw,
            symbols=SYMBOLS,
            outputs=Outputs("tokens", SYMBOLS),
            causal=True,
            summary=f"{SYMBOLS} symbols, {lengths.train} tokens; a target at every repeated symbol",
            baselines=lambda test: [
                Baseline("the most common symbol so far", {"accuracy": most_common_so_far(test, 0, SYMBOLS)}),
                Baseline("chance", {"accuracy": 1 / SYMBOLS}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The symbols as letters."""
        return list(map(letter, x.tolist()))


def followers(x: Integers) -> Integers:
    """The token that followed the last occurrence of each token of ``x`` (B, N); `IGNORE` at the first occurrence."""
    count, N = x.shape
    rows = np.arange(count)
    followed = np.full((count, SYMBOLS), IGNORE)  # the last follower of each symbol
    y = np.full((count, N), IGNORE)
    for i in range(N):
        if i > 0:
            followed[rows, x[:, i - 1]] = x[:, i]
        y[:, i] = followed[rows, x[:, i]]
    return y
