"""The user's files named in a run's settings: stored as absolute paths, shown as short ones, identified by hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

SETTINGS = ("data", "init_from")
"""The settings that are paths."""


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by flag name with absolute paths."""
    return {
        name: os.path.abspath(value) if name in SETTINGS and value is not None else value  # noqa: PTH100  keeps links
        for name, value in settings.items()
    }


def shown(path: str | os.PathLike[str]) -> Path:
    """A path relative to the current folder if it is below it."""
    path = Path(path)
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def file_hash(path: str | None) -> str | None:
    """The SHA-256 of a file; None for None."""
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
