"""What the server knows between requests: run folders, uploaded arrays, and the networks that were built last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from attnlab.explore.setup import Uploaded
from attnlab.explore.uploads import Uploads
from attnlab.training.folder import looks_like_a_run
from attnlab.training.runs import Run
from attnlab.utils.errors import UnknownNameError

T = TypeVar("T")

MAX_KEPT = 8
"""Networks, and data of tasks, that stay in memory."""


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders in a folder, sorted; none if there is no such folder."""
    return sorted(path for path in folder.iterdir() if looks_like_a_run(path)) if folder.is_dir() else []


def _printable(name: str) -> str:
    """A name whose bytes are not UTF-8 with escapes, so that it can be sent."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


class Shelf:
    """Run folders by name, uploads by key, and a cache of networks and of the data of tasks.

    Args:
        runs: the run folders that can be explored; a folder is called by its name, or by its path if two have the same.
    """

    def __init__(self, runs: Iterable[Path] = ()) -> None:
        folders = list(dict.fromkeys(runs))
        names = [_printable(path.name or str(path)) for path in folders]
        self.runs = {
            name if names.count(name) == 1 else _printable(str(path)): path
            for name, path in zip(names, folders, strict=True)
        }
        self.uploads = Uploads()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock, self._build_lock = threading.Lock(), threading.RLock()

    def upload(self, name: str, content: bytes) -> Uploaded:
        """Keep a file for `attnlab.explore.setup.Upload`; see `Uploads.add`."""
        return self.uploads.add(name, content)

    def run(self, name: str) -> Run:
        """Open the run folder of this name.

        Raises:
            UserError: for an unknown name, or a folder that `Run.open` refuses.
        """
        if name not in self.runs:
            raise UnknownNameError("run", name, self.runs or ["none; start attnlab explore with run folders"])
        return Run.open(self.runs[name])

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned for this key before, or returns now; the least recently used one is forgotten.

        One thread at a time builds or trains, because both seed the global generator; others still get what is kept.
        """
        if (kept := self._get(key)) is not None:
            return kept
        with self._build_lock:
            if (kept := self._get(key)) is not None:
                return kept
            made = make()
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            return made

    def _get(self, key: Hashable) -> Any:
        """What is kept for the key, which is then the last to be forgotten; None for nothing."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)
