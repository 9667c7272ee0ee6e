"""Checks of a task's options and of the user's file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from attnlab.files.data import open_data
from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError

_NO_COLUMNS = "{task} has no columns, so --{name} {value} has no effect; leave it out"
_REFUSALS = {
    "data": "{task} has its own data and cannot read {value}; leave out --task to select the task that can",
    **dict.fromkeys(("target", "target_type", "features", "ignore", "missing"), _NO_COLUMNS),
    "header": "{task} has no columns, so --no_header has no effect; leave it out",
    "split_by": "--split_by {value} is for text, which {task} is not; leave it out",
    "seq_length": "the data of {task} determine the sequence length, so leave out --seq_length {value}",
    "test_length": "{task} has no test data of another length; leave out --test_length {value}",
    "pairs": "{task} has no key-value pairs to choose the number of; leave out --pairs {value}",
    "vocabulary": "the symbols of {task} are fixed; leave out --vocabulary {value}",
    "noise": "{task} has no noise to set; leave out --noise {value}",
}


def check_options(config: TaskConfig, task: str, *options: str) -> None:
    """Raise UserError for an option with another value than its default that is not among the task's ``options``."""
    for name, refusal in _REFUSALS.items():
        value = getattr(config, name)
        if value != getattr(TaskConfig, name) and name not in options:
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(refusal.format(task=task, name=name, value=shown))


class Lengths(NamedTuple):
    """The tokens per sequence of the training and validation data, and of the test data."""

    train: int
    test: int


def check_lengths(config: TaskConfig, task: str, default: int, low: int, high: int, *, even: str = "") -> Lengths:
    """``seq_length`` or ``default``, and ``test_length`` or the same.

    Raises:
        UserError: for a length that is not from ``low`` to ``high``, or odd if ``even`` gives a reason against that.
    """
    train = default if config.seq_length is None else config.seq_length
    lengths = Lengths(train, train if config.test_length is None else config.test_length)
    for flag, length in zip(("seq_length", "test_length"), lengths, strict=True):
        if not low <= length <= high:
            raise UserError(f"--{flag} for {task} must be from {low:,} to {high:,}, not {length:,}")
        if even and length % 2:
            raise UserError(f"--{flag} for {task} must be even, not {length:,}: {even}")
    return lengths


def check_vocabulary(task: str, vocabulary: int, pairs: int, needed: int) -> None:
    """Raise UserError for a vocabulary of fewer symbols than ``pairs`` different keys and values need."""
    if vocabulary < needed:
        raise UserError(
            f"{task} with {pairs:,} pairs needs a vocabulary of at least {needed:,}, with a key and a value for each, "
            f"not {vocabulary:,}; set --vocabulary or --pairs"
        )


def check_file(path: Path, task: str, suffixes: tuple[str, ...]) -> None:
    """Check that the user's file can be read.

    Raises:
        UserError: for a file that is missing, not regular (a folder, a pipe, a device), empty, unreadable, or with a
            suffix that the task does not read.
    """
    try:
        with open_data(path) as file:
            empty = not file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data {path} does not exist; check the name") from None
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror}") from None
    if path.suffix.lower() not in suffixes:
        known = " ".join(suffixes) or "no files"
        raise UserError(f"{task} reads {known}, not {path.name}; give such a file, or leave out --task")
    if empty:
        raise UserError(f"--data {path} is empty; give a file with data")
