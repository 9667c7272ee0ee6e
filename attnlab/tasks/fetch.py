"""Read four places at once: what several heads are for."""

from __future__ import annotations

import numpy as np

from attnlab.network import Inputs, Outputs
from attnlab.task import Baseline, Problem, Request, Split, Task
from attnlab.tasks._requests import length_within, takes
from attnlab.tasks._synthetic import Whole, draw_splits

SYMBOLS = 16  # with 8, one head learns to tell place and symbol apart by the size of its weights, and reaches 0.83
PLACES = 4
LENGTH = 24
TRAIN = 16_000


class Fetch(Task):
    """Symbols drawn at random, then a question mark, at which the symbols of four fixed places must be named.

    With 16 symbols (letters here) and N = 24, the places are 2, 8, 14 and 20::

        x   h c A o e b f d P k a i g n B l m j p d C e f ?
                ^           ^           ^           ^
        y   A P B C                                         (one choice a place)

    A head is one average over the places for each question; four places, one apart from the other, want four heads.
    """

    summary = "name the symbols at four places at once: separates one head from several in seconds"
    defaults = {"layers": 1, "mlp": False, "learning_rate": 5e-3, "epochs": 1}

    def load(self, request: Request) -> Problem:
        """Draw the examples; ``seq_length`` (5 or more) moves the places apart."""
        takes(request, "fetch", "seq_length")
        N = length_within(request, "fetch", LENGTH, PLACES + 1, 100_000)
        where = places(N)

        def draw(generator: np.random.Generator, count: int) -> tuple[Whole, Whole]:
            x = generator.integers(0, SYMBOLS, (count, N))
            x[:, -1] = SYMBOLS  # the question mark
            return x, x[:, where]

        train, validation, test = draw_splits(request, TRAIN, draw)
        return Problem(
            train,
            validation,
            test,
            inputs=Inputs("tokens", SYMBOLS + 1),
            outputs=Outputs("classes", SYMBOLS, PLACES),
            length=N,
            metric="accuracy",
            pool="last",
            facts=(f"{SYMBOLS} symbols, {N} tokens; asked for are places {', '.join(map(str, where))}",),
            baselines=lambda: baselines(test),
        )


def places(N: int) -> list[int]:
    """The four places that are asked for, spread evenly before the question mark."""
    return [(2 * i + 1) * (N - 1) // (2 * PLACES) for i in range(PLACES)]


def baselines(test: Split) -> list[Baseline]:
    """Chance, and the best that knows the four symbols but not which stands where: always the commonest of them."""
    commonest = (test.y.unsqueeze(2) == test.y.unsqueeze(1)).sum(2).max(1).values
    return [
        Baseline("the four symbols without their places", commonest.double().mean().item() / PLACES),
        Baseline("chance", 1 / SYMBOLS),
    ]
