"""Read four places at once: what several heads are for."""

from __future__ import annotations

import numpy as np
import torch

from attnlab.network import Inputs, Outputs
from attnlab.tasks._requests import length_within, takes
from attnlab.tasks._synthetic import Whole, draw_splits
from attnlab.tasks.base import Baseline, Split, Task, TaskConfig, TaskData

SYMBOLS = 8
QUESTIONS = 5
PLACES = 4
LENGTH = 24
TRAIN = 16_000


class MultiLookup(Task):
    """Symbols drawn at random, then one of five questions, at which the symbols of its four places must be named.

    With 8 symbols (letters here) and N = 24, question 0 asks for places 0, 5, 10 and 15, question 1 for
    4, 9, 14 and 19, and so on: each asks for four others::

        x   h c a d e b f d g a h c g f b d e h a c b e d 0
            ^         ^         ^         ^
        y   h b h d                                         (one choice a place)

    A head is one weighted mean of the sequence for each question, so one head blends four symbols into one vector.
    Five questions keep it from another way out: with the places always the same, one head learns to tell them apart
    by how much of each it takes, and names 0.83 of the symbols and more.
    """

    summary = "name the symbols at four places at once: separates one head from several in seconds"
    caveat = "multi_lookup asks for four positions at once: one head cannot tell them apart, four can"
    defaults = {"layers": 1, "mlp": False, "learning_rate": 8e-3, "epochs": 1}

    def load(self, config: TaskConfig) -> TaskData:
        """Draw the examples; ``seq_length`` (9 or more) moves the places apart."""
        takes(config, "multi_lookup", "seq_length")
        N = length_within(config, "multi_lookup", LENGTH, 2 * PLACES + 1, 100_000)
        where = places(N)

        def draw(generator: np.random.Generator, count: int) -> tuple[Whole, Whole]:
            x = generator.integers(0, SYMBOLS, (count, N))
            asked = generator.integers(0, QUESTIONS, count)
            x[:, -1] = SYMBOLS + asked
            return x, np.take_along_axis(x, where[asked], axis=1)

        train, validation, test = draw_splits(config, TRAIN, draw)
        return TaskData(
            train,
            validation,
            test,
            inputs=Inputs("tokens", SYMBOLS + QUESTIONS),
            outputs=Outputs("classes", SYMBOLS, PLACES),
            length=N,
            metric="accuracy",
            pool="last",
            summary_lines=(f"{SYMBOLS} symbols, {N} tokens; each of {QUESTIONS} questions asks for {PLACES} places",),
            baselines=lambda: baselines(test, torch.from_numpy(where)),
        )


def places(N: int) -> Whole:
    """(questions, places): what each question asks for, spread evenly before the question itself."""
    apart = (N - 1) // PLACES
    questions, steps = np.arange(QUESTIONS)[:, None], np.arange(PLACES)
    return (PLACES * questions + apart * steps) % (PLACES * apart)


def baselines(test: Split, where: torch.Tensor) -> list[Baseline]:
    """Chance, and the best that knows the four symbols but not which stands where: always the commonest of them."""
    found = test.x.gather(1, where[test.x[:, -1] - SYMBOLS])
    commonest = (found.unsqueeze(2) == found.unsqueeze(1)).sum(2).max(1).values
    return [
        Baseline("the four symbols without their places", {"accuracy": commonest.double().mean().item() / PLACES}),
        Baseline("chance", {"accuracy": 1 / SYMBOLS}),
    ]
