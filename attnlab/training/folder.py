"""The folder of a run: where one can be made, who trains in it, and how an earlier one is replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from attnlab.files.atomic import UNFINISHED, atomically, open_regular, write_text
from attnlab.training import records
from attnlab.utils.errors import UserError

try:
    import fcntl
except ImportError:  # a system without it: two processes in one folder are then not found out
    fcntl = None  # type: ignore[assignment]

RUNS = Path("runs")
RUN_FILES = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "state.safetensors",
    "result.json",
    "report.md",
    "curve.png",
    "confusion.png",
)
"""What attnlab writes into the folder of a run; ``--overwrite`` removes these, and nothing else."""
REPLACED = ".replaced"
"""How the name of an earlier run ends while a new one takes its place: ``.attnlab-NAME.replaced``."""
ABANDONED = 3600
"""Seconds after which an unfinished folder that no process has locked is removed."""


class Held:
    """A run's folder while a process trains in it, and the files that would be lost if the folder was removed."""

    def __init__(self, path: Path) -> None:
        self.handle = lock(path)
        self.identity = _identity(os.fstat(self.handle))
        self._apply_positions = Path(os.path.abspath(path))  # which the working directory may vanish with  # noqa: PTH100
        self._kept: dict[str, BinaryIO] = {}
        for name in ("model.safetensors", "metrics.jsonl"):
            self.keep(path / name)

    def keep(self, file: Path) -> None:
        """Keep a file open, so that its content outlives its name."""
        with contextlib.suppress(UserError):
            opened = open_regular(file)
            if file.name in self._kept:
                self._kept.pop(file.name).close()
            self._kept[file.name] = opened

    def gone(self) -> bool:
        """Whether the folder was removed, moved or replaced."""
        try:
            return _identity(self._apply_positions.stat()) != self.identity
        except OSError:
            return True

    def recover(self, config: dict[str, Any]) -> Path:
        """Make the folder again, under the next free name ``PATH-recovered``, with the files that were kept.

        Raises:
            UserError: when it cannot be made.
        """
        path = self._apply_positions
        number, place = 1, path.with_name(f"{path.name}-recovered")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            while os.path.lexists(place):
                number += 1
                place = path.with_name(f"{path.name}-recovered-{number}")
            place.mkdir()
        except OSError as error:
            raise UserError(f"{path} was removed, and {place} cannot be made: {error.strerror}") from None
        write_text(place / "config.json", records.write(records.Config, config))
        for name, file in self._kept.items():
            file.seek(0)
            with atomically(place / name) as temporary, temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        os.close(self.handle)
        self.handle = lock(place)
        self.identity, self._apply_positions = _identity(os.fstat(self.handle)), place
        return place

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self.handle)
        for file in self._kept.values():
            file.close()


def lock(path: Path) -> int:
    """An open folder that no other process has locked; closing it unlocks it, and so does the end of the process.

    Raises:
        UserError: when another process holds it, or it is not there.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from None
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"another process is training in {path}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
    return handle


def is_locked(path: Path) -> bool:
    """Whether a process holds the folder; False where the system has no locks."""
    if fcntl is None:
        return False
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask do not see each other
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, a folder that has gone
            return False
    return False


def check_run_dir(path: Path, *, overwrite: bool) -> None:
    """Find out before training whether a run folder can be made there.

    Raises:
        UserError: for a place that cannot be written to, a folder that exists (without ``overwrite``), or one in which
            ``overwrite`` would find files that no run wrote.
    """
    restore_replaced(path)
    try:
        try_to_make(path)
    except OSError as error:
        raise UserError(f"cannot make --run_dir {path}: {error.strerror}") from None
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists; give another --run_dir, --resume {path}, or --overwrite to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not looks_like_a_run(path)):
        raise UserError(f"--overwrite replaces run folders only, and {path} is none; give another --run_dir")
    if others := _others(path):
        raise UserError(
            f"--overwrite removes only what a run wrote, and {path} also holds {', '.join(others[:3])}"
            f"{' ...' if len(others) > 3 else ''}; move that, or give another --run_dir"
        )


def looks_like_a_run(path: Path) -> bool:
    """Whether the config.json in a folder is one of ours, be it damaged."""
    try:
        return {"format", "attnlab", "settings"} <= set(records.read(path / "config.json"))
    except (UserError, ValueError, TypeError):
        return False


def try_to_make(path: Path) -> None:
    """Whether a file or a folder could be made there, leaving nothing behind.

    Raises:
        OSError: when not.
    """
    place = Path(os.path.realpath(path))  # where a link leads to
    folder = place.parent
    while not os.path.lexists(folder):  # it will be made; can it be?
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in place.relative_to(folder).parts:  # may a file here be called so?
        with contextlib.suppress(FileNotFoundError):
            (folder / name).lstat()


def sweep(folder: Path) -> None:
    """Restore or remove what killed processes left: an earlier run whose place is empty, and folders half made."""
    for left in folder.glob(f"{UNFINISHED}*"):
        if left.name.endswith(REPLACED):  # however old, it is the only copy where its place is empty
            restore_replaced(folder / left.name.removeprefix(UNFINISHED).removesuffix(REPLACED))
            continue
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > ABANDONED:  # a younger one may be in the making
                _remove(left)


def restore_replaced(path: Path) -> None:
    """Put an earlier run back into its place where a process was killed before the new one took it.

    It is removed where another run is in its place, and stays where something else is.
    """
    place = Path(os.path.realpath(path))
    earlier = place.with_name(f"{UNFINISHED}{place.name}{REPLACED}")
    with contextlib.suppress(OSError):
        if not earlier.is_dir() or earlier.is_symlink() or is_locked(earlier):
            return
        if looks_like_a_run(place):
            _remove(earlier)
        else:
            earlier.rename(place)  # fails where anything but an empty folder is


def take_number(new: Path, stem: str) -> Path:
    """Move a new run to the next free number; returns its path."""
    number = 1
    while True:
        path = RUNS / f"{stem}-{number:03d}"
        try:
            path.mkdir()  # mkdir is atomic: the process that makes the folder has the number
        except FileExistsError:
            number += 1
            continue
        new.replace(path)
        return path


def replace(new: Path, path: Path) -> None:
    """Put a new run where ``path`` is. Killed at any moment, either run is at ``path`` or put there by `sweep`."""
    if not path.exists():
        new.replace(path)
        return
    handle = lock(path)  # moves with the folder, so that no sweep takes it meanwhile
    try:
        earlier = path.with_name(f"{UNFINISHED}{path.name}{REPLACED}")
        path.rename(earlier)
        try:
            new.rename(path)
        except OSError:
            earlier.rename(path)
            raise
        _remove(earlier)
    finally:
        os.close(handle)


def remove_unfinished(path: Path) -> None:
    """Remove the files that a killed process left half written in a run's folder."""
    for left in path.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            left.unlink()


def _remove(folder: Path) -> None:
    """Remove a run's folder; one that also holds other files stays, with them, and so does what a link points to."""
    if folder.is_symlink():
        return
    remove_unfinished(folder)
    for name in RUN_FILES:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _others(folder: Path) -> list[str]:
    """The names in a folder that no run wrote."""
    return sorted(
        found.name
        for found in folder.iterdir()
        if not (found.name in RUN_FILES or found.name.startswith(UNFINISHED))
        or (found.is_dir() and not found.is_symlink())
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
