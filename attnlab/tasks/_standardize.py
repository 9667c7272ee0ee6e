"""Standardization in float64: zero mean and unit standard deviation over the training rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.utils.errors import UserError

MAX_STANDARDIZED = 1e18
"""The largest standardized magnitude: squares of larger ones overflow in float32."""
BLOCK_CELLS = 5_000_000
"""Numbers that are converted to float64 at once."""


def mean_and_std(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation over the rows of (B, ...) in float64, ignoring NaN; a zero deviation becomes one."""
    flat = x.reshape(len(x), -1)
    mean, spread = np.zeros(flat.shape[1]), np.ones(flat.shape[1])
    for part in _blocks(len(x), flat.shape[1]):
        values = flat[:, part].astype(np.float64)
        present = ~np.isnan(values)
        counts = np.maximum(present.sum(axis=0), 1)
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        middle = np.where(present.any(axis=0), low / 2 + high / 2, 0)  # a sum of values far from zero loses precision
        away = np.where(present, values - middle, 0)
        shift = away.sum(axis=0) / counts
        mean[part] = middle + shift
        away = np.where(present, away - shift, 0)
        largest = np.abs(away).max(axis=0, initial=0)
        varies = (low < high) & (largest > 0)
        scale = np.where(varies, largest, 1)  # squares of tiny values would underflow
        spread[part] = np.where(varies, scale * np.sqrt(((away / scale) ** 2).sum(axis=0) / counts), 1)
    return mean.reshape(x.shape[1:]), spread.reshape(x.shape[1:])


def standardize(
    x: NDArray[Any],
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    refuse: Callable[[int, int], UserError],
) -> NDArray[np.float32]:
    """``(x - mean) / spread`` of (B, ...), computed in float64; NaN becomes 0, the mean.

    ``refuse`` makes the error for a row and an index into the flattened row whose value is too far from the mean for
    float32.
    """
    flat, out = x.reshape(len(x), -1), np.empty(x.shape, np.float32)
    written, shift, scale = out.reshape(flat.shape), mean.ravel(), spread.ravel()
    for part in _blocks(len(x), flat.shape[1]):
        values = (flat[:, part].astype(np.float64) - shift[part]) / scale[part]
        far = np.abs(values) > MAX_STANDARDIZED
        if far.any():
            row, number = np.unravel_index(int(far.argmax()), far.shape)
            raise refuse(int(row), int(number) + part.start)
        written[:, part] = np.nan_to_num(values, copy=False)
    return out


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of the columns, each small enough for float64."""
    step = max(1, BLOCK_CELLS // max(1, rows))
    yield from (slice(i, min(i + step, width)) for i in range(0, width, step))
