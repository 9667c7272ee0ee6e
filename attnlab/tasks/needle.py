"""A needle in a haystack: find one key-value pair in noise, and name its value."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, letter, synthetic
from attnlab.tasks.base import Baseline, Task, TaskConfig, TaskData

VOCABULARY = 16
LENGTH = 64


class Needle(Task):
    """One key-value pair in noise; at the end, the key asks for its value.

    With N = 12; the pair has a key and a value (upper case) from symbols of their own, and the rest is noise::

        x   d a c a K B d d a c b K
                      ^
        y   B

    The noise grows with ``seq_length``, and with ``test_length`` in the test data alone. ``vocabulary`` is the number
    of values, and that of the symbols in the noise.

    Source: Kamradt 2023, "Needle In A Haystack" (github.com/gkamradt/LLMTest_NeedleInAHaystack), with random symbols in
    place of essays.
    """

    summary = "name the value of the only key-value pair in noise (needle in a haystack)"
    fresh_data = True
    threshold = 0.99
    defaults = {"epochs": 1, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is the size of the haystack."""
        check_options(config, "needle", "seq_length", "test_length", "vocabulary")
        lengths = check_lengths(config, "needle", LENGTH, 4, LONGEST)
        symbols = VOCABULARY if config.vocabulary is None else config.vocabulary

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            y = generator.integers(0, symbols, (count, 1))
            x = generator.integers(symbols, 2 * symbols, (count, N))
            where = generator.integers(0, N - 2, (count, 1))
            np.put_along_axis(x, where, 2 * symbols, axis=1)
            np.put_along_axis(x, where + 1, y, axis=1)
            x[:, -1] = 2 * symbols
            return x, y

        return synthetic(
            config,
            lengths,
            draw,
            symbols=2 * symbols + 1,
            outputs=Outputs("classes", symbols),
            pool="last",
            summary=f"one of {symbols} values among {lengths.train - 3} tokens of noise",
            baselines=lambda test: [Baseline("chance", {"accuracy": 1 / symbols})],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The values as upper-case letters, noise as lower-case letters, and ``?`` for the key."""
        values = inputs.size // 2
        return [
            "?" if token == 2 * values else letter(token).upper() if token < values else letter(token - values)
            for token in x.tolist()
        ]
