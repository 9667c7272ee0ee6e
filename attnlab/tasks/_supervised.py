"""From rows with one answer each to a problem: classification or regression, split, standardised, with baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.errors import UserError
from attnlab.network import Inputs, Outputs
from attnlab.task import Baseline, Problem, Request, Split
from attnlab.tasks._baselines import classifiers, regressors
from attnlab.tasks._split import check_count, listed, shuffled, stratified

MOST_CLASSES = 20
"""Whole numbers with more different values than this are quantities, not classes."""

Features = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[Any, ...]]
"""From the numbers of the training and the test rows to the baselines' features of both."""


@dataclass(frozen=True)
class Rows:
    """What was read from the user's file.

    Args:
        x: (B, N) tokens or (B, N, F) numbers.
        answers: (B,) numbers, words or truth values.
        inputs: what ``x`` is.
        lengths: (B,), where some of ``x`` is padding.
        facts: what was understood so far.
        encoding: what `Task.read` needs to read more of the same.
    """

    x: NDArray[Any]
    answers: NDArray[Any]
    inputs: Inputs
    lengths: NDArray[np.int64] | None = None
    facts: tuple[str, ...] = ()
    encoding: dict[str, Any] | None = None


def supervised(rows: Rows, request: Request, *, name: str, features: Features | None = None) -> Problem:
    """Classification for words, truth values and few different whole numbers; regression for the others.

    Args:
        rows: what to learn from.
        request: the seed and ``val_fraction``.
        name: what the answers are called.
        features: the baselines' view; without it they see ``x``, flattened.

    Raises:
        UserError: too few rows, one class or one value only, answers that are no numbers.
    """
    check_count(len(rows.answers))
    y: NDArray[Any]
    regression = is_quantity(rows.answers)
    if regression:
        if not np.isfinite(rows.answers.astype(np.float64)).all():
            raise UserError(f"{name} holds NaN or infinity; replace or drop those rows")
        y, labels = rows.answers.astype(np.float64), None
        parts = shuffled(len(y), request)
        if y[parts.train].std() == 0:
            raise UserError(f"every row to train on has the same {name} ({y[parts.train][0]:g}): nothing to learn")
    else:
        known, which = np.unique(rows.answers, return_inverse=True)
        labels = known.tolist()
        parts = stratified(which, labels, request)
        y = which

    x, encoding = rows.x, dict(rows.encoding or {})
    if rows.inputs.kind == "vectors":
        shift, scale = standards(x[parts.train])
        encoding |= {"shift": shift.tolist(), "scale": scale.tolist()}
        x = standardise(x, encoding)
    mean, unit = (float(y[parts.train].mean()), float(y[parts.train].std())) if regression else (0.0, 1.0)
    encoding |= {"mean": mean, "unit": unit} if regression else {"labels": labels}

    def split(part: NDArray[np.int64]) -> Split:
        asked = ((y[part] - mean) / unit).astype(np.float32) if regression else y[part]
        lengths = None if rows.lengths is None else torch.from_numpy(rows.lengths[part])
        return Split(torch.from_numpy(x[part]), torch.from_numpy(asked).unsqueeze(1), lengths)

    def baselines() -> list[Baseline]:
        train, test = (features or flattened)(parts.train, parts.test)
        return (regressors if regression else classifiers)(train, y[parts.train], test, y[parts.test])

    def flattened(*those: NDArray[np.int64]) -> tuple[Any, ...]:
        return tuple(x[part].reshape(len(part), -1) for part in those)

    said = (
        f"regression: {name} from {y.min():g} to {y.max():g}, the error is in its own unit"
        if regression
        else f"classification: {name} is one of {len(labels or [])}: {listed(labels or [])}"
    )
    return Problem(
        split(parts.train),
        split(parts.validation),
        split(parts.test),
        inputs=rows.inputs,
        outputs=Outputs("values", 1) if regression else Outputs("classes", len(labels or [])),
        length=x.shape[1],
        metric="rmse" if regression else "accuracy",
        unit=unit,
        encoding=encoding,
        facts=(*rows.facts, said),
        baselines=baselines,
    )


def is_quantity(answers: NDArray[Any]) -> bool:
    """Whether answers are amounts: fractions, or whole numbers of many different values."""
    if np.issubdtype(answers.dtype, np.floating):
        return bool((answers % 1 != 0).any()) or len(np.unique(answers)) > MOST_CLASSES
    return bool(np.issubdtype(answers.dtype, np.integer)) and len(np.unique(answers)) > MOST_CLASSES


def standards(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread of every number of a row (N, F); a spread of zero counts as one."""
    spread = x.std(axis=0, dtype=np.float64)
    return x.mean(axis=0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


def standardise(x: NDArray[Any], encoding: dict[str, Any]) -> NDArray[np.float32]:
    """(B, N, F) as it was standardised for training."""
    shift, scale = np.array(encoding["shift"]), np.array(encoding["scale"])
    return ((x - shift[: x.shape[1]]) / scale[: x.shape[1]]).astype(np.float32)
