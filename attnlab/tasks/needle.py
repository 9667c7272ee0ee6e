"""A needle in a haystack: find one key among random symbols, and name the symbol after it."""

from __future__ import annotations

import numpy as np

from attnlab.network import Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, most_common, synthetic
from attnlab.tasks.base import Baseline, Task, TaskConfig, TaskData

VOCABULARY = 16
LENGTH = 64


class Needle(Task):
    """One key-value pair among random symbols; at the end, the key asks for its value.

    With N = 12; the key is ``?``, and its value any symbol (letters here)::

        x   d a c a ? b d d a c b ?
                      ^
        y   b

    Everything else is noise, which grows with ``seq_length``, and with ``test_length`` in the test data alone.

    Source: Kamradt 2023, "Needle In A Haystack" (github.com/gkamradt/LLMTest_NeedleInAHaystack), with random symbols in
    place of essays.
    """

    summary = "name the symbol after the only key among random symbols (needle in a haystack)"
    fresh_data = True
    defaults = {"epochs": 2, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is the size of the haystack."""
        check_options(config, "needle", "seq_length", "test_length", "vocabulary")
        lengths = check_lengths(config, "needle", LENGTH, 4, LONGEST)
        symbols = VOCABULARY if config.vocabulary is None else config.vocabulary

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            x = generator.integers(0, symbols, (count, N))
            where = generator.integers(0, N - 2, (count, 1))
            np.put_along_axis(x, where, symbols, axis=1)
            x[:, -1] = symbols
            return x, np.take_along_axis(x, where + 1, axis=1)

        return synthetic(
            config,
            lengths,
            draw,
            symbols=symbols + 1,
            outputs=Outputs("classes", symbols),
            pool="last",
            summary=f"one pair among {lengths.train - 3} random symbols out of {symbols}",
            baselines=lambda test: [
                Baseline("the most common symbol", {"accuracy": most_common(test, symbols)}),
                Baseline("chance", {"accuracy": 1 / symbols}),
            ],
        )
