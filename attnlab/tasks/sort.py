"""Sorting: write the symbols in ascending order."""

from __future__ import annotations

import numpy as np

from attnlab.tasks._transduction import Transduction, transduction
from attnlab.tasks.base import TaskConfig, TaskData


class Sort(Transduction):
    """Random symbols and a separator, then the same symbols in ascending order.

    With 4 symbols (letters here) and N = 8; the dots have no target::

        x   c a d a | a a c
        y   . . . . a a c d

    The next output is the smallest symbol that was read more often than written.

    Source: Graves et al. 2014, "Neural Turing Machines" (arXiv 1410.5401), without priorities.
    """

    summary = "write the symbols in ascending order"
    fresh_data = True
    threshold = 0.98
    defaults = {"causal": True, "epochs": 3, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is even, twice the number of symbols."""
        return transduction(config, "sort", lambda x: np.sort(x, axis=1), "the most common of the symbols left")
