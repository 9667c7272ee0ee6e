"""Classification or regression of rows: split, standardized targets and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.network import Inputs, Outputs
from attnlab.tasks._baselines import Features, classifiers, regressors
from attnlab.tasks._split import Rows, groups_of_equal_rows, listed, shuffled, stratified
from attnlab.tasks._standardize import mean_and_std
from attnlab.tasks.base import ColumnUse, Split, TaskConfig, TaskData
from attnlab.tasks.tables.target import Locate, Target, standardized_target
from attnlab.utils.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """All rows as network inputs, standardized by the training rows; the fields are those of `TaskData`."""

    x: NDArray[Any]
    """(B, N), (B, N, F) or cells (B, N, 2), depending on ``inputs``."""
    inputs: Inputs
    length: int
    lengths: Rows | None
    """(B,), if some of ``x`` is padding."""
    encoding: dict[str, Any]
    features: Features
    summary_lines: tuple[str, ...] = ()


def supervised(
    target: Target,
    rows: NDArray[Any],
    encode: Callable[[Rows], Encoded],
    config: TaskConfig,
    *,
    locate: Locate,
    summary_lines: tuple[str, ...] = (),
    columns: tuple[ColumnUse, ...] = (),
) -> TaskData:
    """A classification or a regression.

    Equal ``rows`` (B, features) stay in one part of the split. ``encode`` encodes all rows, given the indices of the
    training rows.

    Raises:
        UserError: for too few rows, a single class or value, or what ``encode`` refuses.
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
        outputs, metric, encoded_y = Outputs("classes", len(labels)), "accuracy", y
        kind = f"classification: {target.name} is one of {len(labels):,}: {listed(labels)}"
    else:
        parts = shuffled(len(y), config, groups=groups)
        known = y[parts.train]
        if known.max() == known.min():
            raise UserError(f"every training row has the same {target.name} ({known[0]:.9g}): nothing to learn")
        mean, unit = (float(each[0]) for each in mean_and_std(known[:, None]))
        about = {"mean": mean, "unit": unit}
        outputs, metric = Outputs("values", 1), "rmse"
        encoded_y = standardized_target(y, mean, unit, target.name, locate)
        kind = f"regression: {target.name} from {y.min():.9g} to {y.max():.9g}, errors are in its unit"
    encoded = encode(parts.train)

    def split(part: Rows) -> Split:
        lengths = None if encoded.lengths is None else torch.from_numpy(encoded.lengths[part])
        return Split(torch.from_numpy(encoded.x[part]), torch.from_numpy(encoded_y[part]).unsqueeze(1), lengths)

    train, validation, test = map(split, parts)
    return TaskData(
        train,
        validation,
        test,
        inputs=encoded.inputs,
        outputs=outputs,
        length=encoded.length,
        metric=metric,
        unit=unit,
        encoding={"target": target.name, **about, **encoded.encoding},
        summary_lines=(*summary_lines, *encoded.summary_lines, kind),
        columns=columns,
        baselines=lambda: (regressors if labels is None else classifiers)(encoded.features, y, parts),
    )
