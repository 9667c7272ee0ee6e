"""Splits of rows into training, validation and test data, determined by the seed."""

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
"""Fraction of all rows in the test data."""

MIN_ROWS = 10
"""Fewer rows cannot be split into three parts."""
BLOCK = 10_000
"""Rows that are copied at once."""


class Parts(NamedTuple):
    """The rows of each part, in ascending order."""

    train: Rows
    validation: Rows
    test: Rows


def shuffled(count: int, config: TaskConfig, what: str = "rows", groups: Rows | None = None) -> Parts:
    """A random split: a fifth of the rows to test, ``val_fraction`` of the rest to validate, the others to train.

    ``groups`` (count,) are group indices from 0: rows of the same group stay in one part.

    Raises:
        UserError: for fewer rows than `MIN_ROWS`, or fewer than three groups.
    """
    check_count(count, what)
    groups = np.arange(count) if groups is None else groups
    sizes = np.bincount(groups)
    if len(sizes) < 3:
        raise UserError(
            f"there are only {len(sizes)} different {what} to train, validate and test on; at least 3 are needed"
        )
    return _parts(_assign([np.arange(len(sizes))], sizes, config)[groups])


def stratified(classes: NDArray[Any], labels: Sequence[Any], config: TaskConfig, groups: Rows | None = None) -> Parts:
    """A random split with the same class proportions in each part, and every class in each part.

    ``classes`` (rows,) are indices into ``labels``; ``groups`` are as in `shuffled`, and may have several classes.

    Raises:
        UserError: for fewer rows than `MIN_ROWS`, a single class, or a class with fewer than three different rows.
    """
    check_count(len(classes))
    if len(labels) < 2:
        one = labels[0] if len(labels) else "none"
        raise UserError(f"every row is of one class ({one}), so there is nothing to learn; two are needed")
    groups = np.arange(len(classes)) if groups is None else groups
    sizes = np.bincount(groups)
    # Each class of each group once, as two parallel arrays.
    owners, kinds = np.divmod(np.unique(groups * len(labels) + classes), len(labels))
    different = np.bincount(kinds, minlength=len(labels))
    if different.min() < 3:
        rare = [f"{label} ({count})" for label, count in zip(labels, different, strict=True) if count < 3]
        raise UserError(
            "each class needs at least 3 different rows, to train, validate and test on, where equal rows count once; "
            f"these have fewer: {listed(rare)}"
        )
    order = np.lexsort((different[kinds], owners))  # a group belongs to the rarest of its classes
    main = kinds[order][np.unique(owners[order], return_index=True)[1]]
    by_class = np.split(np.argsort(main, kind="stable"), np.cumsum(np.bincount(main, minlength=len(labels)))[:-1])
    part_of = _assign(by_class, sizes, config)
    _complete(part_of, owners, kinds, labels)
    return _parts(part_of[groups])


def sample(classes: NDArray[Any], count: float, seed: int) -> Rows:
    """The indices of ``count`` random rows with at least one row of every class, in ascending order.

    There are more than ``count`` if there are more classes, and all if there are fewer rows.
    """
    if count >= len(classes):
        return np.arange(len(classes))
    order = np.random.default_rng(seed).permutation(len(classes))
    needed = np.zeros(len(classes), bool)
    needed[np.unique(classes[order], return_index=True)[1]] = True
    order = np.concatenate([order[needed], order[~needed]])
    return np.sort(order[: max(int(count), int(needed.sum()))])


def groups_of_equal_rows(rows: NDArray[Any]) -> Rows:
    """(rows,) group indices from 0 in order of first appearance; equal rows of (rows, features) form a group."""
    known: dict[bytes, int] = {}
    groups = []
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK] + rows.dtype.type(0)  # -0.0 becomes 0.0, whose bytes differ
        digests = (blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(block))
        groups += [known.setdefault(digest, len(known)) for digest in digests]
    return np.array(groups, np.int64)


def check_count(count: int, what: str = "rows") -> None:
    """Raise UserError for fewer rows than `MIN_ROWS`."""
    if count < MIN_ROWS:
        raise UserError(
            f"there are too few {what} to train, validate and test on ({count}); at least {MIN_ROWS} are needed"
        )


def listed(words: Sequence[Any], most: int = 8) -> str:
    """``a, b, c``, or ``a, b, ... and 7 more`` for many words."""
    shown = ", ".join(map(str, words[:most]))
    return shown if len(words) <= most else f"{shown} and {len(words) - most} more"


def _assign(pools: list[Rows], sizes: Rows, config: TaskConfig) -> NDArray[np.int64]:
    """The part of every group: 0 train, 1 validation, 2 test. Each pool of groups is split separately.

    A pool of at least three groups leaves no part empty; groups larger than the test part go to the training data.
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
    """Move groups, in place, until every class is in every part; needed only if groups have several classes.

    ``part_of`` is (groups,); ``owners`` and ``kinds`` are (pairs,), a group and one of its classes.
    """
    counts = np.zeros((len(labels), 3), np.int64)
    np.add.at(counts, (kinds, part_of[owners]), 1)
    for kind, part in np.argwhere(counts == 0):
        if counts[kind, part]:
            continue  # an earlier move added it
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
