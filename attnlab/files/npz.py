"""Arrays of an .npz file, read on access after their declared size has been checked."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from attnlab.files.data import check_size, open_data
from attnlab.utils.errors import UserError

_ALWAYS = 2**28
"""Bytes that an array may have, however small the file is."""
_MAX_COMPRESSION = 100
"""The largest compression ratio of an array above that size."""


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an .npz file by name, read on access; nothing in the file is executed.

    Args:
        path: the file.
        max_bytes: the largest array that is read, in bytes; by default limited by the file and the memory alone.

    Raises:
        UserError: for an invalid file; on access, for an array of Python objects, or a declared size that exceeds the
            file or the memory.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self.path, self.max_bytes = path, max_bytes
        with _refusing(path), open_data(path) as file, zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        self._names = dict.fromkeys(names)
        if len(self._names) < len(names):
            repeated = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(f"{path} holds two arrays called {repeated}; expected one")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with _refusing(self.path), open_data(self.path) as file, zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(f"{name}.npy")
            self._check_declared(entry)
            with archive.open(entry) as array:
                self._check_header(name, array, entry.file_size)
            with archive.open(entry) as array:
                return npy.read_array(array, allow_pickle=False)

    def _check_declared(self, entry: zipfile.ZipInfo) -> None:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in a way that numpy does not write")
        size = self.path.stat().st_size
        if entry.file_size > max(_ALWAYS, _MAX_COMPRESSION * size):
            raise UserError(
                f"{self.path} has {size:,} bytes and declares {entry.file_size:,} in {entry.filename}; arrays "
                f"that are compressed more than {_MAX_COMPRESSION} times are not read, so save it with numpy.savez"
            )
        if self.max_bytes is not None and entry.file_size > self.max_bytes:
            raise UserError(
                f"{entry.filename} in {self.path} has {entry.file_size:,} bytes; at most {self.max_bytes:,} are read"
            )
        check_size(self.path, entry.file_size)

    def _check_header(self, name: str, array: Any, size: int) -> None:
        version = npy.read_magic(array)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} has version {version} of the .npy format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(array)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if dtype.kind not in "biufcSUMm" or not dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"{name} has shape {shape} and dtype {dtype}")
        declared = array.tell() + math.prod(shape) * dtype.itemsize
        if declared != size:
            raise ValueError(f"{name} declares {declared:,} bytes and has {size:,}")


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Convert the errors of a damaged archive to a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).split("\n")[0][:200]
        raise UserError(
            f"{path} is no readable .npz file ({reason}); make one with numpy.savez(path, x=x, y=y)"
        ) from None
