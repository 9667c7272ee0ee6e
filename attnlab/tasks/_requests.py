"""What a task refuses to be asked, and the user's file found or refused."""

from __future__ import annotations

from pathlib import Path

from attnlab.errors import UserError
from attnlab.task import Request

_REFUSALS = {
    "data": "{task} has its own data, so it cannot read {value}; leave out --task, and the task that can is taken",
    "target": "{task} has no columns, so --target {value} means nothing to it; leave it out",
    "seq_length": "the data of {task} say how long a sequence is, not --seq_length {value}; leave it out",
}


def takes(request: Request, task: str, *options: str) -> None:
    """Refuse what the user asked and the task would have to ignore.

    Raises:
        UserError: for ``data``, ``target`` or ``seq_length`` that is given and not among ``options``.
    """
    for name, refusal in _REFUSALS.items():
        value = getattr(request, name)
        if value is not None and name not in options:
            raise UserError(refusal.format(task=task, value=value))


def length_within(request: Request, task: str, usual: int, low: int, high: int) -> int:
    """The length of a sequence: what was asked, or ``usual``.

    Raises:
        UserError: for one that is not from ``low`` to ``high``.
    """
    length = usual if request.seq_length is None else request.seq_length
    if not low <= length <= high:
        raise UserError(f"--seq_length for {task} must be from {low:,} to {high:,}, not {length:,}")
    return length


def check_file(path: Path, task: str, suffixes: tuple[str, ...]) -> None:
    """Find out whether the user's file can be read at all.

    Raises:
        UserError: for a file that is missing, a folder, empty, unreadable, or of an ending that the task does not read.
    """
    if path.is_dir():
        raise UserError(f"--data {path} is a folder; name a file in it")
    if not path.is_file():
        raise UserError(f"--data {path} is not there; check the name")
    if path.suffix.lower() not in suffixes:
        known = " ".join(suffixes) or "no file"
        raise UserError(f"{task} reads {known}, not {path.name}; leave out --task, or rename the file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror}") from None
    if empty:
        raise UserError(f"--data {path} is empty; put something into it")
