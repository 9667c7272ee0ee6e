"""The lock on the folder of a run during training."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from attnlab.files.atomic import atomically, open_regular, write_text
from attnlab.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not detected
    fcntl = None  # type: ignore[assignment]


class LockedFolder:
    """The locked folder of a run, and open handles of the files that would be lost if the folder was removed."""

    def __init__(self, path: Path) -> None:
        self.handle = lock(path)
        self.identity = _identity(os.fstat(self.handle))
        self._path = Path(os.path.abspath(path))  # absolute, because the working directory may be removed  # noqa: PTH100
        self._files: dict[str, BinaryIO] = {}
        for name in ("model.safetensors", "metrics.jsonl"):
            self.keep(path / name)

    def keep(self, file: Path, name: str | None = None) -> None:
        """Keep a file open, so that its content survives its removal; ``name`` is its path in a subfolder."""
        name = name or file.name
        with contextlib.suppress(UserError):
            opened = open_regular(file)
            if name in self._files:
                self._files.pop(name).close()
            self._files[name] = opened

    def was_removed(self) -> bool:
        """Whether the folder was removed, moved or replaced."""
        try:
            return _identity(self._path.stat()) != self.identity
        except OSError:
            return True

    def recover(self, config: str) -> Path:
        """Create the folder again under the next free name ``PATH-recovered``, with ``config`` and the kept files."""
        number, path = 1, self._path.with_name(f"{self._path.name}-recovered")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while os.path.lexists(path):
                number += 1
                path = self._path.with_name(f"{self._path.name}-recovered-{number}")
            path.mkdir()
        except OSError as error:
            raise UserError(f"{self._path} was removed, and {path} cannot be made: {error.strerror}") from None
        write_text(path / "config.json", config)
        for name, file in self._files.items():
            file.seek(0)
            (path / name).parent.mkdir(exist_ok=True)
            with atomically(path / name) as temporary, temporary.open("wb") as copy:
                shutil.copyfileobj(file, copy)
        os.close(self.handle)
        self.handle = lock(path)
        self.identity, self._path = _identity(os.fstat(self.handle)), path
        return path

    def close(self) -> None:
        """Unlock the folder."""
        os.close(self.handle)
        for file in self._files.values():
            file.close()


def lock(path: Path) -> int:
    """Lock a folder; closing the returned handle, or the end of the process, unlocks it."""
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


def unlock(handle: int) -> None:
    """Unlock the folder of a handle that `lock` returned."""
    os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process has locked the folder; False where the system has no locks."""
    if fcntl is None:
        return False
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two readers do not see each other
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks, or a folder that was removed
            return False
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
