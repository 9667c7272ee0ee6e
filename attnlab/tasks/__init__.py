"""The tasks, one file each in this folder, discovered by their presence."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.catalog.source import read_class
from attnlab.utils.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from attnlab.tasks.base import Task

FOLDER = Path(__file__).parent
DEFAULT = "few_shot"
"""The task without ``--task`` and ``--data``."""
SHARED = ("base", "metrics")
"""Files of this folder that are not tasks."""


@dataclass(frozen=True)
class Entry:
    """A task as described in its source, read without importing it."""

    name: str
    class_name: str
    summary: str
    caveat: str = ""
    suffixes: tuple[str, ...] = ()
    needs_data: bool = False
    fresh_data: bool = False
    threshold: float | None = None
    defaults: dict[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """The names of the tasks, sorted."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in SHARED)


ALIASES = {"fetch": "multi_lookup"}
"""Earlier names of tasks, which are accepted until version 0.3."""


def resolve(name: str) -> str:
    """The current name of a task."""
    return ALIASES.get(name, name)


def entry(name: str) -> Entry:
    """The description of a task, read from its source; UnknownNameError for an unknown name."""
    name = resolve(name)
    if name not in names():
        raise UnknownNameError("task", name, names())
    source = read_class(FOLDER / f"{name}.py", "summary")
    known = {field.name for field in fields(Entry)}
    return Entry(name, source.name, **{key: value for key, value in source.attributes.items() if key in known})


def for_file(path: Path) -> str:
    """The task that reads files like ``path``; UserError with the known suffixes if no task does."""
    entries = [entry(name) for name in names()]
    for candidate in entries:
        if path.suffix.lower() in candidate.suffixes:
            return candidate.name
    known = sorted(suffix for e in entries for suffix in e.suffixes)
    raise UserError(f"no task reads {path.suffix or 'files without a suffix'} ({path}); give one of {', '.join(known)}")


def load(name: str) -> Task:
    """The task with this name; UnknownNameError for an unknown name."""
    described = entry(name)
    return getattr(import_module(f"attnlab.tasks.{described.name}"), described.class_name)()
