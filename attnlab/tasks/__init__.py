"""The tasks: one file each in this folder, found by its presence."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.catalog.source import read_class
from attnlab.utils.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from attnlab.tasks.base import Task

FOLDER = Path(__file__).parent
SHARED = ("base", "metrics")
"""Files of this folder that every task uses, and that are no task."""


@dataclass(frozen=True)
class Entry:
    """A task as its source text describes it."""

    name: str
    class_name: str
    summary: str
    caveat: str
    suffixes: tuple[str, ...]
    needs_data: bool
    defaults: dict[str, Any]


def names() -> list[str]:
    """The tasks' names, in order: every file of this folder but those that tasks share."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in SHARED)


ALIASES = {"fetch": "multi_lookup"}
"""Earlier names of tasks, which are accepted until version 0.3."""


def resolve(name: str) -> str:
    """The current name of a task."""
    return ALIASES.get(name, name)


def entry(name: str) -> Entry:
    """What the source text of a task says.

    Raises:
        UnknownNameError: for a name that no file has.
    """
    name = resolve(name)
    if name not in names():
        raise UnknownNameError("task", name, names())
    source = read_class(FOLDER / f"{name}.py", "summary")
    said = source.attributes
    return Entry(
        name,
        source.name,
        said["summary"],
        said.get("caveat", ""),
        tuple(said.get("suffixes", ())),
        said.get("needs_data", False),
        said.get("defaults", {}),
    )


def for_file(path: Path) -> str:
    """The task that reads files like ``path``.

    Raises:
        UserError: when none does, with the endings that some task reads.
    """
    entries = [entry(name) for name in names()]
    for candidate in entries:
        if path.suffix.lower() in candidate.suffixes:
            return candidate.name
    known = sorted(suffix for e in entries for suffix in e.suffixes)
    raise UserError(
        f"no task reads {path.suffix or 'files without an ending'} ({path}); give one of {', '.join(known)}"
    )


def load(name: str) -> Task:
    """The task itself.

    Raises:
        UnknownNameError: for a name that no file has.
    """
    described = entry(name)
    return getattr(import_module(f"attnlab.tasks.{described.name}"), described.class_name)()
