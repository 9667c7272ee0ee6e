"""Tasks that write a sequence of symbols after reading another: copy, reverse and sort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, letter, one_per_symbol, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Split, Task, TaskConfig, TaskData

VOCABULARY = 16
LENGTH = 32


class Transduction(Task):
    """The base class of these tasks."""

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The symbols as letters, and ``|`` for the separator."""
        return ["|" if token == inputs.size - 1 else letter(token) for token in x.tolist()]


def transduction(config: TaskConfig, task: str, rule: Callable[[Integers], Integers], without: str) -> TaskData:
    """Random examples of a task whose outputs follow from the symbols by a rule.

    ``x`` is n = N / 2 symbols, a separator and the first n - 1 outputs; ``y`` is the n outputs, from the separator on.

    Args:
        config: the options.
        task: its name.
        rule: the outputs (B, n) of the symbols (B, n), which are from 0 to ``vocabulary`` - 1.
        without: the name of the baseline that knows the symbols, but not their order.
    """
    check_options(config, task, "seq_length", "test_length", "vocabulary")
    lengths = check_lengths(config, task, LENGTH, 4, LONGEST, even="there are as many outputs as symbols")
    symbols = VOCABULARY if config.vocabulary is None else config.vocabulary

    def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
        read = generator.integers(0, symbols, (count, N // 2))
        written = rule(read)
        x = np.concatenate([read, np.full((count, 1), symbols), written[:, :-1]], axis=1)
        return x, np.concatenate([np.full((count, N // 2), IGNORE), written], axis=1)

    return synthetic(
        config,
        lengths,
        draw,
        symbols=symbols + 1,
        outputs=Outputs("tokens", symbols),
        causal=True,
        summary=f"{lengths.train // 2} symbols out of {symbols}, and as many outputs",
        baselines=lambda test: [
            Baseline(without, {"accuracy": without_order(test, symbols)}),
            Baseline("chance", {"accuracy": 1 / symbols}),
        ],
    )


def without_order(test: Split, symbols: int) -> float:
    """The accuracy of the most common symbol among those that were read and are not written yet."""
    x, n = test.x.numpy(), test.x.shape[1] // 2
    left = one_per_symbol(x[:, :n], symbols).sum(1)
    hits = 0
    for y in test.y.numpy()[:, n:].T:
        hits += int((left.argmax(1) == y).sum())
        left[np.arange(len(x)), y] -= 1
    return hits / (len(x) * n)
