"""The class names of the mechanisms, and suggestions for misspelled imports. Neither imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from attnlab.utils.errors import nearest

RENAMED = {"Cache": "KVCache"}
"""New names of what has been renamed in ``attnlab``."""

_EXPORT = re.compile(r"^from \.(\w+) import (\w+) as \2$", re.MULTILINE)


def mechanisms() -> dict[str, str]:
    """Return the folder of each mechanism by its class name, as ``models/NAME/__init__.py`` exports it."""
    import attnlab

    return _mechanisms(tuple(attnlab.__path__))


@cache
def _mechanisms(path: tuple[str, ...]) -> dict[str, str]:
    files = sorted(file for folder in path for file in Path(folder).glob("models/*/__init__.py"))
    exports = [(file.parent.name, _EXPORT.search(file.read_text(encoding="utf-8"))) for file in files]
    return {match[2]: name for name, match in exports if match and match[1] == name}


def hint(package: str, name: str) -> str:
    """Return a suggestion for a name that ``package`` does not have; empty if no name is near."""
    import attnlab

    if package == "attnlab" and name in RENAMED:
        return f"it has been renamed to {RENAMED[name]}"
    known = [*attnlab.__all__, *mechanisms()] if package == "attnlab" else list(mechanisms().values())
    near = nearest(name, known)
    return f"did you mean {near}?" if near else ""


class SpellingFinder(MetaPathFinder):
    """The last import finder: raises for a misspelled name in ``attnlab`` or ``attnlab.models``, with a suggestion.

    A module's ``__getattr__`` cannot do this: the import statement replaces its error by one of its own.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise ImportError if a known name is near; else leave the error to the import system."""
        package, _, name = fullname.rpartition(".")
        if package in ("attnlab", "attnlab.models") and (suggestion := hint(package, name)):
            raise ImportError(f"cannot import {name!r} from {package!r}; {suggestion}", name=fullname)
        return None
