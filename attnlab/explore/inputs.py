"""The sequence of a view: the tensor that a network takes, and a label for each token.

Axes: N length, F features per token, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attnlab import tasks
from attnlab.explore.setup import Digit, TaskExample, Text
from attnlab.explore.setup import Upload as UploadInput
from attnlab.explore.shelf import Shelf
from attnlab.explore.subject import Patch
from attnlab.explore.uploads import MAX_LENGTH
from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import Task, TaskConfig, TaskData
from attnlab.utils.errors import UserError

ASCII = 128
"""Characters with a code of their own; the others share as many further codes."""
SPACES = {" ": "␣", "\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class Sequence:
    """One sequence, and the network that fits it.

    Args:
        x: (N,) integers, (N, F) vectors or (N, 2) cells, as ``inputs`` says.
        tokens: the label of each token.
        inputs: of the network.
        outputs: of the network.
        classes: the names of the outputs, C of them; empty if they are no classes.
        pool: how the network pools the sequence.
        notes: one line each.
        image: the pixels of an image, from 0 to 1.
        patches: the part of the image in each token.
    """

    x: Tensor
    tokens: tuple[str, ...]
    inputs: Inputs
    outputs: Outputs
    classes: tuple[str, ...] = ()
    pool: Literal["mean", "last"] = "mean"
    notes: tuple[str, ...] = ()
    image: tuple[tuple[float, ...], ...] | None = None
    patches: tuple[Patch, ...] | None = None


def read_sequence(given: Text | TaskExample | Digit | UploadInput, shelf: Shelf) -> Sequence:
    """Return the sequence of an input, for a network that is built to fit it.

    Raises:
        UserError: for an unknown task, upload or example, or a sequence of more than `MAX_LENGTH` tokens.
    """
    match given:
        case Text():
            return characters(given.text)
        case Digit():
            return digit(given)
        case TaskExample():
            return task_example(given, shelf)
        case UploadInput():
            return uploaded(given, shelf)


def characters(text: str) -> Sequence:
    """The characters of a text. ASCII has 128 codes of its own; any other character has one of 128 shared ones.

    The codes do not depend on the text, so that a network stays the same while its text changes.
    """
    codes = [ord(c) if ord(c) < ASCII else ASCII + ord(c) % ASCII for c in text]
    sharing: dict[int, set[str]] = {}
    for c, code in zip(text, codes, strict=True):
        sharing.setdefault(code, set()).add(c)
    notes = tuple(
        f"the characters {' and '.join(sorted(same))} have the same code, so they are the same token"
        for same in sharing.values()
        if len(same) > 1
    )
    size = 2 * ASCII
    names = tuple(character(chr(i)) if i < ASCII else f"other {i - ASCII}" for i in range(size))
    return Sequence(
        torch.tensor(codes), tuple(text), Inputs("tokens", size), Outputs("tokens", size), names, notes=notes
    )


def letters(text: str, alphabet: str) -> Tensor:
    """The indices (N,) of the characters of a text in an alphabet.

    Raises:
        UserError: for the first character that is not in it.
    """
    for i, letter in enumerate(text):
        if letter not in alphabet:
            raise UserError(
                f"the character {letter!r} (number {i + 1}) is not among those that the network was trained on, "
                f"{alphabet!r}; write the text with these alone"
            )
    return torch.tensor([alphabet.index(letter) for letter in text])


def character(c: str) -> str:
    """A visible name of a character."""
    return SPACES.get(c, c if c.isprintable() else f"\\x{ord(c):02x}")


def digit(given: Digit) -> Sequence:
    """A scan of 8 × 8 pixels as rows or square patches, for a network that names the digit."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    image = (scans.images[given.index] / 16).astype(np.float32)
    height, width = {"row": (1, 8), "2x2": (2, 2), "1x1": (1, 1)}[given.patch]
    patches = [(top, left, top + height, left + width) for top in range(0, 8, height) for left in range(0, 8, width)]
    x = np.stack([image[top:bottom, left:right].ravel() for top, left, bottom, right in patches])
    return Sequence(
        torch.from_numpy(x),
        tuple(f"row {top + 1}" if given.patch == "row" else f"{top + 1},{left + 1}" for top, left, _, _ in patches),
        Inputs("vectors", height * width),
        Outputs("classes", 10),
        tuple(map(str, range(10))),
        notes=(f"this scan shows the digit {scans.target[given.index]}",),
        image=tuple(tuple(row) for row in image.tolist()),
        patches=tuple(patches),
    )


def task_example(given: TaskExample, shelf: Shelf) -> Sequence:
    """A validation example of a task without data of the user."""
    if not given.task:
        raise UserError(f"name the task of the example; there are: {', '.join(explorable_tasks())}")
    entry = tasks.entry(given.task)
    if entry.needs_data:
        raise UserError(
            f"{entry.name} needs your own file; train on it with attnlab train --data FILE, and explore that run"
        )
    task = tasks.load(entry.name)
    data = shelf.keep(("task", entry.name, given.seed), lambda: task.load(TaskConfig(seed=given.seed)))
    return validation_example(task, data, given.index)


def explorable_tasks() -> list[str]:
    """The names of the tasks that need no file."""
    return [name for name in tasks.names() if not tasks.entry(name).needs_data]


def validation_example(task: Task, data: TaskData, index: int) -> Sequence:
    """One validation example, without padding; UserError for an index beyond them."""
    count = len(data.validation.x)
    if index >= count:
        raise UserError(f"there are {count:,} validation examples, counted from 0; {index:,} is none of them")
    example = data.validation.take(slice(index, index + 1))
    x = example.x[0] if example.lengths is None else example.x[0, : int(example.lengths[0])]
    check_length(len(x))
    return Sequence(
        x,
        tuple(task.token_labels(x, data.inputs, data.encoding)),
        data.inputs,
        data.outputs,
        class_names(task, data.inputs, data.outputs, data.encoding),
        data.pool,
    )


def class_names(task: Task, inputs: Inputs, outputs: Outputs, encoding: dict[str, object]) -> tuple[str, ...]:
    """The names of the outputs of a task; those of its symbols if it predicts symbols, none if it predicts numbers."""
    if outputs.kind == "values" or outputs.slots > 1:
        return ()
    labels = encoding.get("labels")
    if isinstance(labels, list):
        return tuple(map(str, labels))
    if inputs.kind == "tokens" and outputs.size <= inputs.size:  # the classes are the first symbols
        return tuple(task.token_labels(torch.arange(outputs.size), inputs, encoding))
    return tuple(map(str, range(outputs.size)))


def uploaded(given: UploadInput, shelf: Shelf) -> Sequence:
    """A row of an uploaded array."""
    x = shelf.uploads.get(given.key).x
    row = torch.from_numpy(x[check_row(given, shelf)].astype(np.int64 if x.ndim == 2 else np.float32))
    if x.ndim == 2:
        size = int(x.max()) + 1
        return Sequence(row, tuple(map(str, row.tolist())), Inputs("tokens", size), Outputs("tokens", size))
    size = x.shape[2]
    names = tuple(map(str, range(x.shape[1])))
    return Sequence(row, names, Inputs("vectors", size), Outputs("tokens", size))


def check_row(given: UploadInput, shelf: Shelf) -> int:
    """The row of an upload; UserError if it has fewer."""
    upload = shelf.uploads.get(given.key)
    if given.row >= len(upload.x):
        raise UserError(f"{upload.name} has {len(upload.x):,} rows, counted from 0; {given.row:,} is none of them")
    return given.row


def check_length(length: int, limit: int | None = MAX_LENGTH, why: str = "") -> None:
    """Refuse a sequence of more than ``limit`` tokens, None for no limit."""
    if limit is not None and length > limit:
        raise UserError(f"the input has {length:,} tokens; the limit is {limit:,}{why}: give a shorter one")
