"""Rows into training, validation and test data, by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnlab.errors import UserError
from attnlab.task import Request

Rows = NDArray[np.int64]

TEST = 0.2
"""The part of all rows that is held out."""

FEWEST = 10
"""Fewer rows than this cannot be split in three and mean anything."""


class Parts(NamedTuple):
    """Which rows go where, each in ascending order."""

    train: Rows
    validation: Rows
    test: Rows


def shuffled(count: int, request: Request, what: str = "rows") -> Parts:
    """A fifth of ``count`` rows to test on, ``val_fraction`` of the others to choose by, the rest to train on.

    Raises:
        UserError: for fewer than `FEWEST`.
    """
    check_count(count, what)
    return _deal([np.arange(count)], request)


def stratified(classes: NDArray[Any], labels: Sequence[Any], request: Request) -> Parts:
    """The same, with every class in the same proportion, and at least once in each part.

    Args:
        classes: (rows,) indices into ``labels``.
        labels: the classes' names.
        request: the seed and ``val_fraction``.

    Raises:
        UserError: for fewer rows than `FEWEST`, one class only, or a class with fewer than three rows.
    """
    check_count(len(classes))
    if len(labels) < 2:
        raise UserError(f"every row is of one class ({_first(labels)}), so there is nothing to learn; two are needed")
    counts = np.bincount(classes, minlength=len(labels))
    if counts.min() < 3:
        rare = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True) if count < 3]
        raise UserError(
            f"a class needs 3 rows at least, to be trained on, chosen by and tested on; fewer have: {listed(rare)}"
        )
    return _deal([np.flatnonzero(classes == i) for i in range(len(labels))], request)


def sample(classes: NDArray[Any], count: int, seed: int) -> Rows:
    """``count`` of the rows, in ascending order, with at least one of every class.

    Args:
        classes: (rows,) the class of each.
        count: how many; at least as many as there are classes, at most all rows.
        seed: decides which.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    _, first = np.unique(classes[order], return_index=True)
    rest = np.setdiff1d(np.arange(len(order)), first)
    return np.sort(order[np.concatenate([first, rest])[:count]])


def check_count(count: int, what: str = "rows") -> None:
    """Refuse fewer rows than `FEWEST`.

    Raises:
        UserError: with how many there are.
    """
    if count < FEWEST:
        raise UserError(f"there are too few {what} to train, choose and test on ({count}); give {FEWEST} at least")


def listed(words: Sequence[Any], most: int = 8) -> str:
    """``a, b, c`` or, where there are many, ``a, b, ... and 7 more``."""
    shown = ", ".join(map(str, words[:most]))
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def _deal(groups: list[Rows], request: Request) -> Parts:
    """Every group into three, no part empty."""
    generator = np.random.default_rng(request.seed)
    parts: list[list[Rows]] = [[], [], []]
    for group in groups:
        rows = generator.permutation(group)
        tested = max(1, round(TEST * len(rows)))
        held = min(max(1, round(request.val_fraction * (len(rows) - tested))), len(rows) - tested - 1)
        for part, dealt in zip(parts, np.split(rows, [len(rows) - tested - held, len(rows) - tested]), strict=True):
            part.append(dealt)
    return Parts(*(np.sort(np.concatenate(part)) for part in parts))


def _first(labels: Sequence[Any]) -> str:
    return str(labels[0]) if len(labels) else "none"
