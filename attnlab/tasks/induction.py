"""Induction: at a token that was there before, repeat what followed it last time."""

from __future__ import annotations

import numpy as np

from attnlab.network import Inputs, Outputs
from attnlab.tasks._requests import length_within, takes
from attnlab.tasks._synthetic import Whole, draw_splits
from attnlab.tasks.base import IGNORE, Baseline, Split, Task, TaskConfig, TaskData

SYMBOLS = 16
LENGTH = 32
TRAIN = 16_000


class Induction(Task):
    """Symbols drawn at random; wherever one was there before, name what followed it the last time.

    ::

        x   c a f b a d f a c
        y           f   b d a

    One causal layer can find the same symbol, but it cannot step from there to the next one: what stands before a
    token must first have been written into it. Two layers can, and the pair of heads that does is called an
    induction head.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads" (arXiv 2209.11895).
    """

    summary = "repeat what followed the last time: one layer cannot, two can (induction heads)"
    defaults = {"causal": True, "epochs": 8, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Draw the examples; ``seq_length`` from 4 on."""
        takes(config, "induction", "seq_length")
        N = length_within(config, "induction", LENGTH, 4, 100_000)

        def draw(generator: np.random.Generator, count: int) -> tuple[Whole, Whole]:
            x = generator.integers(0, SYMBOLS, (count, N))
            return x, followers(x)

        train, validation, test = draw_splits(config, TRAIN, draw)
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("tokens", SYMBOLS),
            outputs=Outputs("tokens", SYMBOLS),
            length=N,
            metric="accuracy",
            causal=True,
            summary_lines=(f"{SYMBOLS} symbols, {N} tokens; asked at every symbol that was there before",),
            baselines=lambda: baselines(test),
        )


def followers(x: Whole) -> Whole:
    """What followed each token of ``x`` (B, N) the last time; `IGNORE` at its first time."""
    count, N = x.shape
    rows = np.arange(count)
    followed = np.full((count, SYMBOLS), IGNORE)  # by what each symbol was followed last
    y = np.full((count, N), IGNORE)
    for i in range(N):
        if i > 0:
            followed[rows, x[:, i - 1]] = x[:, i]
        y[:, i] = followed[rows, x[:, i]]
    return y


def baselines(test: Split) -> list[Baseline]:
    """Chance, and the commonest symbol so far: all that can be known without looking at the order."""
    seen = np.zeros((len(test.x), SYMBOLS))
    x, y = test.x.numpy(), test.y.numpy()
    hits = 0
    for i in range(x.shape[1]):
        seen[np.arange(len(x)), x[:, i]] += 1
        hits += int((seen.argmax(1) == y[:, i]).sum())
    return [
        Baseline("the commonest symbol so far", {"accuracy": hits / int((y != IGNORE).sum())}),
        Baseline("chance", {"accuracy": 1 / SYMBOLS}),
    ]
