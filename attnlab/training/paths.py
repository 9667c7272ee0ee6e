"""The user's files named in a run's settings: kept as absolute paths, shown as short ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SETTINGS = ("data", "init_from")
"""The settings that name a file or a folder of the user's."""


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by flag name with absolute paths, so that they name the same files from every folder."""
    return {
        name: os.path.abspath(value) if name in SETTINGS and value is not None else value  # noqa: PTH100  keeps links
        for name, value in settings.items()
    }


def shown(path: str | os.PathLike[str]) -> Path:
    """A path as one would type it here: relative where it lies below the current folder."""
    path = Path(path)
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path
