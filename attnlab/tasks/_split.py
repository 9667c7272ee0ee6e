"""Rows into training, validation and test data, by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError

Rows = NDArray[np.int64]

TEST = 0.2
"""The part of all rows that is held out."""

FEWEST = 10
"""Fewer rows than this cannot be split in three and mean anything."""


BLOCK = 10_000
"""Rows that are copied at once."""


class Parts(NamedTuple):
    """Which rows go where, each in ascending order."""

    train: Rows
    validation: Rows
    test: Rows


def shuffled(count: int, config: TaskConfig, what: str = "rows", groups: Rows | None = None) -> Parts:
    """A fifth of ``count`` rows for testing, ``val_fraction`` of the others for validation, the rest for training.

    Args:
        count: how many rows there are.
        config: the seed and ``val_fraction``.
        what: what the rows are called in messages.
        groups: (count,) numbers from 0; rows of the same number stay in one part.

    Raises:
        UserError: for fewer rows than `FEWEST`, or fewer than three groups.
    """
    check_count(count, what)
    groups = np.arange(count) if groups is None else groups
    sizes = np.bincount(groups)
    if len(sizes) < 3:
        raise UserError(
            f"there are only {len(sizes)} different {what} to train, validate and test on; 3 are needed at least"
        )
    return _parts(_deal([np.arange(len(sizes))], sizes, config)[groups])


def stratified(classes: NDArray[Any], labels: Sequence[Any], config: TaskConfig, groups: Rows | None = None) -> Parts:
    """The same, with every class in the same proportion, and at least once in each part.

    Args:
        classes: (rows,) indices into ``labels``.
        labels: the classes' names.
        config: the seed and ``val_fraction``.
        groups: (rows,) numbers from 0; rows of the same number stay in one part, of whatever class they are.

    Raises:
        UserError: for fewer rows than `FEWEST`, one class only, or a class with fewer than three different rows.
    """
    check_count(len(classes))
    if len(labels) < 2:
        raise UserError(f"every row is of one class ({_first(labels)}), so there is nothing to learn; two are needed")
    groups = np.arange(len(classes)) if groups is None else groups
    sizes = np.bincount(groups)
    # Each class of each group once, as two parallel arrays.
    owners, kinds = np.divmod(np.unique(groups * len(labels) + classes), len(labels))
    different = np.bincount(kinds, minlength=len(labels))
    if different.min() < 3:
        rare = [f"{label} ({count})" for label, count in zip(labels, different, strict=True) if count < 3]
        raise UserError(
            "a class needs 3 different rows at least, to train, validate and test on, and rows that are read as equal "
            f"count once; these have fewer: {listed(rare)}"
        )
    order = np.lexsort((different[kinds], owners))  # a group counts for the rarest of its classes
    main = kinds[order][np.unique(owners[order], return_index=True)[1]]
    by_class = np.split(np.argsort(main, kind="stable"), np.cumsum(np.bincount(main, minlength=len(labels)))[:-1])
    part_of = _deal(by_class, sizes, config)
    _complete(part_of, owners, kinds, labels)
    return _parts(part_of[groups])


def sample(classes: NDArray[Any], count: int, seed: int) -> Rows:
    """The numbers of ``count`` rows, drawn at random, with at least one row of every class; in ascending order.

    Args:
        classes: (rows,) the class of every row; all the same where there are none.
        count: how many rows to draw; more where there are more classes, all where there are fewer rows.
        seed: the same seed draws the same rows.
    """
    if count >= len(classes):
        return np.arange(len(classes))
    order = np.random.default_rng(seed).permutation(len(classes))
    needed = np.zeros(len(classes), bool)
    needed[np.unique(classes[order], return_index=True)[1]] = True
    order = np.concatenate([order[needed], order[~needed]])
    return np.sort(order[: max(count, int(needed.sum()))])


def groups_of_equal_rows(rows: NDArray[Any]) -> Rows:
    """(rows,) numbers from 0 in the order of first appearance, the same for rows of (rows, features) that are equal."""
    known: dict[bytes, int] = {}
    found = np.empty(len(rows), np.int64)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK] + rows.dtype.type(0)  # -0.0 becomes 0.0, which has other bytes
        for i, row in enumerate(np.ascontiguousarray(block), first):
            found[i] = known.setdefault(blake2b(row, digest_size=16).digest(), len(known))
    return found


def check_count(count: int, what: str = "rows") -> None:
    """Refuse fewer rows than `FEWEST`.

    Raises:
        UserError: with how many there are.
    """
    if count < FEWEST:
        raise UserError(f"there are too few {what} to train, validate and test on ({count}); give {FEWEST} at least")


def listed(words: Sequence[Any], most: int = 8) -> str:
    """``a, b, c`` or, where there are many, ``a, b, ... and 7 more``."""
    shown = ", ".join(map(str, words[:most]))
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def _deal(pools: list[Rows], sizes: Rows, config: TaskConfig) -> NDArray[np.int64]:
    """The part of every group: 0 train, 1 validation, 2 test. Each pool of groups is dealt by itself.

    A pool of three groups or more leaves no part empty; groups larger than the test part are trained on.
    """
    generator = np.random.default_rng(config.seed)
    part_of = np.zeros(len(sizes), np.int64)
    for pool in pools:
        order = generator.permutation(pool)
        if len(order) < 3:
            continue
        rows = int(sizes[order].sum())
        tested = max(1, round(TEST * rows))
        held = min(max(1, round(config.val_fraction * (rows - tested))), rows - tested - 1)
        large = sizes[order] > tested
        order = np.concatenate([order[large], order[~large]])
        counted = np.cumsum(sizes[order][::-1])
        tests = min(int(np.searchsorted(counted, tested)) + 1, len(order) - 2)
        wanted = counted[tests - 1] + held
        held_out = min(int(np.searchsorted(counted, wanted)) + 1, len(order) - 1)
        part_of[order[len(order) - held_out :]] = 1
        part_of[order[len(order) - tests :]] = 2
    return part_of


def _complete(part_of: NDArray[np.int64], owners: Rows, kinds: Rows, labels: Sequence[Any]) -> None:
    """Move groups, in place, until every class is in every part; only groups of several classes can make it necessary.

    Args:
        part_of: (groups,) the part of every group.
        owners: (pairs,) groups.
        kinds: (pairs,) the classes that they hold.
        labels: the classes' names.
    """
    counts = np.zeros((len(labels), 3), np.int64)
    np.add.at(counts, (kinds, part_of[owners]), 1)
    for kind, part in np.argwhere(counts == 0):
        if counts[kind, part]:
            continue  # an earlier move has brought it
        for group in owners[kinds == kind]:
            held, left = kinds[owners == group], part_of[group]
            if (counts[held, left] > 1).all():
                counts[held, left] -= 1
                counts[held, part] += 1
                part_of[group] = part
                break
        else:
            raise UserError(
                f"the rows of class {labels[kind]} are copies of rows of other classes, so that it cannot be in the "
                "training, the validation and the test data; give more different rows"
            )


def _parts(part_of: NDArray[np.int64]) -> Parts:
    return Parts(*(np.flatnonzero(part_of == part) for part in range(3)))


def _first(labels: Sequence[Any]) -> str:
    return str(labels[0]) if len(labels) else "none"
