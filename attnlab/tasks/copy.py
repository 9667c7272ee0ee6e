"""Copying: write the symbols again, in the same order."""

from __future__ import annotations

from attnlab.tasks._transduction import Transduction, transduction
from attnlab.tasks.base import TaskConfig, TaskData


class Copy(Transduction):
    """Random symbols and a separator, then the same symbols.

    With 4 symbols (letters here) and N = 8; the dots have no target::

        x   c a d a | c a d
        y   . . . . c a d a

    Each output needs the symbol at its own place in the input, half a sequence earlier; a fixed state must hold all of
    them at once.

    Source: Graves et al. 2014, "Neural Turing Machines" (arXiv 1410.5401); Jelassi et al. 2024, "Repeat After Me"
    (arXiv 2402.01032), for next-token prediction.
    """

    summary = "write the symbols again, in the same order"
    fresh_data = True
    threshold = 0.99
    defaults = {"causal": True, "epochs": 1, "learning_rate": 3e-3}

    def load(self, config: TaskConfig) -> TaskData:
        """Random examples; ``seq_length`` is even, twice the number of symbols."""
        return transduction(config, "copy", lambda x: x, "the most common of the symbols left")
