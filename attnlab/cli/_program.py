"""How this attnlab is called from here, so that whatever is printed can be pasted."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from attnlab.utils.escape import shell_word


def program() -> str:
    """How this attnlab is called from here: ``attnlab`` where it is on the path, else by its Python."""
    return "attnlab" if _active() else f"{python()} -m attnlab"


def python() -> str:
    """The Python that runs this, as one would type it here."""
    return "python" if _active() else short(Path(sys.executable))


def trainer() -> str:
    """How training is called from here: ``python main.py`` in a checkout, ``attnlab train`` elsewhere."""
    here = Path("main.py").is_file() and Path("models").is_dir()
    return f"{python()} main.py" if here else f"{program()} train"


def _active() -> bool:
    """Whether this Python's environment comes first on the path."""
    found = shutil.which("attnlab")
    return found is not None and Path(found).parent == Path(sys.executable).parent


def short(path: Path) -> str:
    """A path as one would type it here."""
    try:
        Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return shell_word(str(path))
    return shell_word(os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path))
