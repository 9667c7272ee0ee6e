"""How attnlab is invoked from the current folder, so that printed commands can be pasted."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from attnlab.utils.escape import shell_word


def program() -> str:
    """``attnlab`` where it is on the PATH, else ``PYTHON -m attnlab``."""
    return "attnlab" if _is_active() else f"{python()} -m attnlab"


def python() -> str:
    """The running Python as a command."""
    return "python" if _is_active() else short(Path(sys.executable))


def trainer() -> str:
    """``python main.py`` in a checkout, ``attnlab train`` elsewhere."""
    in_checkout = Path("main.py").is_file() and Path("models").is_dir()
    return f"{python()} main.py" if in_checkout else f"{program()} train"


def launcher(processes: int) -> str:
    """``torchrun ... -m attnlab`` with the number of processes, on this machine or on several."""
    beside = shutil.which("torchrun")
    found = beside is not None and Path(beside).parent == Path(sys.executable).parent
    program = "torchrun" if found else f"{short(Path(sys.executable))} -m torch.distributed.run"
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    options = f"--nproc_per_node {processes}" if machines == 1 else "[the same options]"
    return f"{program} {options} -m attnlab"


def short(path: Path) -> str:
    """A path as a word of a command line, relative where it is inside the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was removed
        return shell_word(str(path))
    return shell_word(os.path.relpath(path) if path.is_absolute() and path.is_relative_to(here) else str(path))


def _is_active() -> bool:
    """Whether the environment of the running Python comes first on the PATH."""
    command = shutil.which("attnlab")
    return command is not None and Path(command).parent == Path(sys.executable).parent
