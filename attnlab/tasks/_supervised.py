"""From rows with one answer each to a problem: classification or regression, split, standardized, with baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.network import Inputs, Outputs
from attnlab.tasks._baselines import Features, classifiers, regressors
from attnlab.tasks._split import groups_of_equal_rows, listed, shuffled, stratified
from attnlab.tasks._target import FURTHEST, Place, Target, standardized_target
from attnlab.tasks.base import Baseline, ColumnUse, Split, TaskConfig, TaskData
from attnlab.utils.errors import UserError

Rows = NDArray[np.int64]

CELLS = 5_000_000
"""Numbers that are standardized at once, in float64."""


@dataclass(frozen=True)
class Encoded:
    """All rows as a network reads them, standardized by the training rows.

    Args:
        x: (B, N), (B, N, F) or cells (B, N, 2), as ``inputs`` says.
        inputs: what ``x`` is.
        length: the longest sequence that there can be.
        lengths: (B,), where some of ``x`` is padding.
        encoding: what `Task.read` needs to read more of the same.
        features: the baselines' view of some rows.
        summary_lines: what was done to the data.
    """

    x: NDArray[Any]
    inputs: Inputs
    length: int
    lengths: Rows | None
    encoding: dict[str, Any]
    features: Features
    summary_lines: tuple[str, ...] = ()


def supervised(
    target: Target,
    rows: NDArray[Any],
    encode: Callable[[Rows], Encoded],
    config: TaskConfig,
    *,
    place: Place,
    summary_lines: tuple[str, ...] = (),
    columns: tuple[ColumnUse, ...] = (),
) -> TaskData:
    """A classification or a regression.

    Args:
        target: the answers.
        rows: (B, features), what is predicted from; equal rows stay in one part of the split.
        encode: encodes all rows, given the numbers of the training rows.
        config: the seed and ``val_fraction``.
        place: names a row in messages.
        summary_lines: what was understood so far.
        columns: what was made of the columns.

    Raises:
        UserError: too few rows, one class or one value only, what ``encode`` refuses.
    """
    groups = groups_of_equal_rows(rows)
    copies = len(groups) - int(groups.max(initial=-1)) - 1
    if copies:
        summary_lines += (
            f"{copies:,} of {len(groups):,} rows repeat an earlier row; equal rows stay in one part of the split",
        )
    y, labels, unit = target.values, target.labels, 1.0
    if labels is not None:
        parts = stratified(y, labels, config, groups)
        counts = np.bincount(y[parts.train])
        about = {"labels": labels, "majority": int(counts.argmax()), "share": float(counts.max() / counts.sum())}
        outputs = Outputs("classes", len(labels))
        asked = y
    else:
        parts = shuffled(len(y), config, groups=groups)
        known = y[parts.train]
        if known.max() == known.min():
            raise UserError(f"every training row has the same {target.name} ({known[0]:.9g}): nothing to learn")
        mean, spread = standards(known[:, None])
        unit = float(spread[0])
        about = {"mean": float(mean[0]), "unit": unit}
        outputs = Outputs("values", 1)
        asked = standardized_target(y, float(mean[0]), unit, target.name, place).astype(np.float32)
    encoded = encode(parts.train)

    def split(part: Rows) -> Split:
        lengths = None if encoded.lengths is None else torch.from_numpy(encoded.lengths[part])
        return Split(torch.from_numpy(encoded.x[part]), torch.from_numpy(asked[part]).unsqueeze(1), lengths)

    def baselines() -> list[Baseline]:
        return (regressors if labels is None else classifiers)(encoded.features, y, parts)

    said = (
        f"regression: {target.name} from {y.min():.9g} to {y.max():.9g}, the error is in its own unit"
        if labels is None
        else f"classification: {target.name} is one of {len(labels):,}: {listed(labels)}"
    )
    return TaskData(
        split(parts.train),
        split(parts.validation),
        split(parts.test),
        inputs=encoded.inputs,
        outputs=outputs,
        length=encoded.length,
        metric="rmse" if labels is None else "accuracy",
        unit=unit,
        encoding={"target": target.name, **about, **encoded.encoding},
        summary_lines=(*summary_lines, *encoded.summary_lines, said),
        columns=columns,
        baselines=baselines,
    )


def standards(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread in float64 of every number of (B, ...), NaN left out; a spread of zero counts as one."""
    flat = x.reshape(len(x), -1)
    mean, spread = np.zeros(flat.shape[1]), np.ones(flat.shape[1])
    for part in _blocks(len(x), flat.shape[1]):
        values = flat[:, part].astype(np.float64)
        there = ~np.isnan(values)
        counts = np.maximum(there.sum(axis=0), 1)
        low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
        middle = np.where(there.any(axis=0), low / 2 + high / 2, 0)  # a sum of values far from zero loses digits
        away = np.where(there, values - middle, 0)
        shift = away.sum(axis=0) / counts
        mean[part] = middle + shift
        away = np.where(there, away - shift, 0)
        largest = np.abs(away).max(axis=0, initial=0)
        varies = (low < high) & (largest > 0)
        scale = np.where(varies, largest, 1)  # squares of tiny numbers would vanish
        spread[part] = np.where(varies, scale * np.sqrt(((away / scale) ** 2).sum(axis=0) / counts), 1)
    return mean.reshape(x.shape[1:]), spread.reshape(x.shape[1:])


def standardize(
    x: NDArray[Any],
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    refuse: Callable[[int, int], UserError],
) -> NDArray[np.float32]:
    """``(x - mean) / spread`` of (B, ...), computed in float64; NaN becomes 0, the mean.

    Args:
        x: (B, ...).
        mean: of every number of a row.
        spread: likewise.
        refuse: the error for a row and the number in it (counted in the flattened row) that is too far from the mean
            for float32.
    """
    flat, out = x.reshape(len(x), -1), np.empty(x.shape, np.float32)
    written, shift, scale = out.reshape(flat.shape), mean.ravel(), spread.ravel()
    for part in _blocks(len(x), flat.shape[1]):
        values = (flat[:, part].astype(np.float64) - shift[part]) / scale[part]
        far = np.abs(values) > FURTHEST
        if far.any():
            row, number = np.unravel_index(int(far.argmax()), far.shape)
            raise refuse(int(row), int(number) + part.start)
        written[:, part] = np.nan_to_num(values, copy=False)
    return out


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """The numbers of a row, so many at once that they fit in memory in float64."""
    step = max(1, CELLS // max(1, rows))
    yield from (slice(i, min(i + step, width)) for i in range(0, width, step))
