"""What a task refuses to be asked, and the user's file found or refused."""

from __future__ import annotations

from pathlib import Path

from attnlab.files.data import open_data
from attnlab.tasks.base import TaskConfig
from attnlab.utils.errors import UserError

_NO_COLUMNS = "{task} has no columns, so --{name} {value} means nothing to it; leave it out"
_REFUSALS = {
    "data": "{task} has its own data, so it cannot read {value}; leave out --task, and the task that can is taken",
    "target": _NO_COLUMNS,
    "target_type": _NO_COLUMNS,
    "features": _NO_COLUMNS,
    "ignore": _NO_COLUMNS,
    "missing": _NO_COLUMNS,
    "header": "{task} has no columns, so --no_header means nothing to it; leave it out",
    "split_by": "--split_by {value} is for text, and {task} is none; leave it out",
    "seq_length": "the data of {task} say how long a sequence is, not --seq_length {value}; leave it out",
}
_DEFAULTS = TaskConfig()


def takes(config: TaskConfig, task: str, *options: str) -> None:
    """Refuse what the user asked and the task would have to ignore.

    Raises:
        UserError: for anything but the seed and the fractions that is not at its default, and not among ``options``.
    """
    for name, refusal in _REFUSALS.items():
        value = getattr(config, name)
        if value != getattr(_DEFAULTS, name) and name not in options:
            shown = " ".join(value) if isinstance(value, tuple) else value
            raise UserError(refusal.format(task=task, name=name, value=shown))


def length_within(config: TaskConfig, task: str, usual: int, low: int, high: int) -> int:
    """The length of a sequence: what was asked, or ``usual``.

    Raises:
        UserError: for one that is not from ``low`` to ``high``.
    """
    length = usual if config.seq_length is None else config.seq_length
    if not low <= length <= high:
        raise UserError(f"--seq_length for {task} must be from {low:,} to {high:,}, not {length:,}")
    return length


def check_file(path: Path, task: str, suffixes: tuple[str, ...]) -> None:
    """Find out whether the user's file can be read at all.

    Raises:
        UserError: for a file that is missing, no regular one (a folder, a pipe, a device), empty, unreadable, or of an
            ending that the task does not read.
    """
    try:
        with open_data(path) as file:
            empty = not file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--data {path} is not there; check the name") from None
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror}") from None
    if path.suffix.lower() not in suffixes:
        known = " ".join(suffixes) or "no file"
        raise UserError(f"{task} reads {known}, not {path.name}; give such a file, or leave out --task")
    if empty:
        raise UserError(f"--data {path} is empty; put something into it")
