"""Splits of tasks with random examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.tasks.base import Split, TaskConfig

Integers = NDArray[np.int64]

TEST = 2_000
"""Test examples: enough to distinguish accuracies that differ by 0.03."""


def draw_splits(
    config: TaskConfig, train: int, draw: Callable[[np.random.Generator, int], tuple[Integers, Integers]]
) -> tuple[Split, Split, Split]:
    """Training, validation and test data, each from its own random stream.

    Args:
        config: the seed of the streams; there are ``val_fraction`` × ``train`` additional validation examples.
        train: the number of training examples.
        draw: makes ``count`` examples, ``x`` and ``y``, with a generator.
    """

    def split(stream: int, count: int) -> Split:
        x, y = draw(np.random.default_rng([config.seed, stream]), count)
        return Split(torch.from_numpy(x), torch.from_numpy(y))

    return split(0, train), split(1, max(1, round(config.val_fraction * train))), split(2, TEST)
