"""Reversal: write the symbols in reverse order."""

from __future__ import annotations

import numpy as np

from attnlab.tasks._transduction import Transduction, transduction
from attnlab.tasks.base import TaskConfig, TaskData


class Reverse(Transduction):
    """Random symbols and a separator, then the same symbols from the last to the first.

    With 4 symbols (letters here) and N = 8; the dots have no target::

        x   c a d a | a d a
        y   . . . . a d a c

    The distance between a symbol and its output is different at each position.

    Source: Grefenstette et al. 2015, "Learning to Transduce with Unbounded Memory" (arXiv 1506.02516).
    """

    summary = "write the symbols again, in reverse order"
    fresh_data = True
    threshold = 0.99
    defaults = {"causal": True, "epochs": 1, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is even, twice the number of symbols."""
        return transduction(config, "reverse", np.fliplr, "the most common of the symbols left")
