"""Read four positions at once: a task for multiple heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, letter, synthetic
from attnlab.tasks.base import Baseline, Split, Task, TaskConfig, TaskData

SYMBOLS = 8
QUESTIONS = 5
POSITIONS = 4
LENGTH = 24


class MultiLookup(Task):
    """Random symbols, then one of five questions: name the symbols at its four positions.

    With 8 symbols (letters here) and N = 24, question 0 asks for positions 0, 5, 10 and 15, question 1 for
    4, 9, 14 and 19, and so on: no two questions share a position::

        x   h c a d e b f d g a h c g f b d e h a c b e d 0
            ^         ^         ^         ^
        y   h b h d                                         (one class per position)

    A head computes one weighted mean of the sequence per question, so a single head blends four symbols into one
    vector. Five questions prevent a shortcut: with fixed positions, one head learns to distinguish them by the size of
    their weights, and reaches an accuracy of 0.83 and more.
    """

    summary = "name the symbols at four positions at once: separates one head from several in seconds"
    caveat = "multi_lookup asks for four positions at once: one head cannot tell them apart, four can"
    fresh_data = True
    threshold = 0.99
    defaults = {"layers": 1, "mlp": False, "learning_rate": 8e-3, "epochs": 1}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` (9 or more) spreads the positions."""
        check_options(config, "multi_lookup", "seq_length", "test_length")
        lengths = check_lengths(config, "multi_lookup", LENGTH, 2 * POSITIONS + 1, LONGEST)

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            x = generator.integers(0, SYMBOLS, (count, N))
            questions = generator.integers(0, QUESTIONS, count)
            x[:, -1] = SYMBOLS + questions
            return x, np.take_along_axis(x, positions(N)[questions], axis=1)

        return synthetic(
            config,
            lengths,
            draw,
            symbols=SYMBOLS + QUESTIONS,
            outputs=Outputs("classes", SYMBOLS, POSITIONS),
            pool="last",
            summary=(
                f"{SYMBOLS} symbols, {lengths.train} tokens; each of {QUESTIONS} questions asks for {POSITIONS} "
                "positions"
            ),
            baselines=baselines,
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The symbols as letters, and the questions as ``?0`` to ``?4``."""
        return [letter(token) if token < SYMBOLS else f"?{token - SYMBOLS}" for token in x.tolist()]


def positions(N: int) -> Integers:
    """(questions, positions): the positions of each question, evenly spaced before the question itself."""
    spacing = (N - 1) // POSITIONS
    questions, steps = np.arange(QUESTIONS)[:, None], np.arange(POSITIONS)
    return (POSITIONS * questions + spacing * steps) % (POSITIONS * spacing)


def baselines(test: Split) -> list[Baseline]:
    """Chance, and the best answer without the order of the four symbols: always the most common of them."""
    where = torch.from_numpy(positions(test.x.shape[1]))
    symbols = test.x.gather(1, where[test.x[:, -1] - SYMBOLS])
    most_common = (symbols.unsqueeze(2) == symbols.unsqueeze(1)).sum(2).max(1).values
    return [
        Baseline("the four symbols without their order", {"accuracy": most_common.double().mean().item() / POSITIONS}),
        Baseline("chance", {"accuracy": 1 / SYMBOLS}),
    ]
