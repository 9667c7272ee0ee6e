"""Tasks that draw their examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.tasks.base import Split, TaskConfig

Whole = NDArray[np.int64]

TEST = 2_000
"""Examples held out: enough to tell two accuracies apart that differ by 0.03."""


def draw_splits(
    config: TaskConfig, train: int, draw: Callable[[np.random.Generator, int], tuple[Whole, Whole]]
) -> tuple[Split, Split, Split]:
    """Training, validation and test data, each from a random stream of its own.

    Args:
        config: its seed decides the streams; the validation data are ``val_fraction`` times as many as the training
            data, and not taken away from them: more can always be drawn.
        train: how many examples to train on.
        draw: makes so many examples, ``x`` and ``y``, out of a generator.
    """

    def split(stream: int, count: int) -> Split:
        x, y = draw(np.random.default_rng([config.seed, stream]), count)
        return Split(torch.from_numpy(x), torch.from_numpy(y))

    return split(0, train), split(1, max(1, round(config.val_fraction * train))), split(2, TEST)
