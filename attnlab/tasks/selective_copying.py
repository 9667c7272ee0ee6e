"""Selective copying: write the symbols that stand between noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from attnlab.network import Inputs, Outputs
from attnlab.tasks._options import check_lengths, check_options
from attnlab.tasks._synthetic import LONGEST, Integers, letter, most_common, synthetic
from attnlab.tasks.base import IGNORE, Baseline, Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

VOCABULARY = 16
LENGTH = 40
NOISE = 0.75


class SelectiveCopying(Task):
    """Symbols at random positions between noise, then as many markers, at which the symbols are written in order.

    With 4 symbols (letters here), N = 12 and a noise of 0.5; ``-`` is noise, ``>`` a marker, and dots have no target::

        x   - c - a a - - d > > > >
        y   . . . . . . . . c a a d

    The positions of the symbols differ between sequences, so that a layer must tell symbols from noise and count them.
    ``noise`` is the fraction of noise before the markers. Longer test sequences have as many symbols, and more noise.

    Source: Gu and Dao 2023, "Mamba" (arXiv 2312.00752), after Jing et al. 2019, "Gated Orthogonal Recurrent Units"
    (arXiv 1706.02761).
    """

    summary = "write the symbols that stand between noise, in order"
    fresh_data = True
    threshold = 0.98
    defaults = {"causal": True, "epochs": 2, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``noise`` decides the number of symbols."""
        check_options(config, "selective_copying", "seq_length", "test_length", "vocabulary", "noise")
        lengths = check_lengths(config, "selective_copying", LENGTH, 4, LONGEST)
        symbols = VOCABULARY if config.vocabulary is None else config.vocabulary
        noise = NOISE if config.noise is None else config.noise
        copied = max(1, round(lengths.train * (1 - noise) / (2 - noise)))
        if 2 * copied > min(lengths):
            raise UserError(
                f"selective_copying copies {copied:,} symbols, which need sequences of at least {2 * copied:,} tokens, "
                f"not {min(lengths):,}; set --noise, --seq_length or --test_length"
            )

        def draw(generator: np.random.Generator, count: int, N: int) -> tuple[Integers, Integers]:
            written = generator.integers(0, symbols, (count, copied))
            where = np.sort(generator.random((count, N - copied)).argsort(axis=1)[:, :copied], axis=1)
            x, y = np.full((count, N), symbols), np.full((count, N), IGNORE)
            np.put_along_axis(x, where, written, axis=1)
            x[:, N - copied :], y[:, N - copied :] = symbols + 1, written
            return x, y

        return synthetic(
            config,
            lengths,
            draw,
            symbols=symbols + 2,
            outputs=Outputs("tokens", symbols),
            causal=True,
            summary=f"{copied} symbols out of {symbols} and {lengths.train - 2 * copied} tokens of noise",
            baselines=lambda test: [
                Baseline("the most common of the symbols", {"accuracy": most_common(test, symbols)}),
                Baseline("chance", {"accuracy": 1 / symbols}),
            ],
        )

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The symbols as letters, ``-`` for noise and ``>`` for a marker."""
        special = {inputs.size - 2: "-", inputs.size - 1: ">"}
        return [special.get(token) or letter(token) for token in x.tolist()]
