"""Uploaded arrays, which are untrusted: sizes and types are checked before anything is allocated."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from attnlab.explore.setup import Uploaded
from attnlab.files import npz
from attnlab.files.tensors import SafetensorsFile
from attnlab.tasks.arrays import MAX_TOKENS
from attnlab.utils.errors import UserError

MAX_BYTES = 2**26
"""The size of an uploaded file, and of the array in it, in bytes."""
MAX_LENGTH = 32_768
"""The longest sequence that is shown, in tokens."""
MAX_FEATURES = 4_096
"""The most values per token."""
MAX_UPLOADS = 8
"""Uploads that stay in memory."""


@dataclass(frozen=True)
class UploadedArray:
    """``x`` of a file, (rows, N) integers or (rows, N, F) numbers; ``name`` is the file's."""

    name: str
    x: NDArray[Any]


class Uploads:
    """The last uploads, by the hash of their content."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, UploadedArray] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, content: bytes) -> Uploaded:
        """Read an uploaded .npz or .safetensors file and keep its ``x``.

        Raises:
            UserError: for a file that is too large or cannot be read safely, or an ``x`` that is no sequence.
        """
        path = Path(name.replace("\\", "/"))
        name = path.stem[:80] + path.suffix[:20]
        if len(content) > MAX_BYTES:
            raise UserError(f"{name} has {len(content):,} bytes; the limit is {MAX_BYTES:,}: upload fewer rows")
        x = _checked(name, _read(name, content))
        key = hashlib.sha256(name.encode() + b"\0" + content).hexdigest()[:16]
        with self._lock:
            self._kept[key] = UploadedArray(name, x)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_UPLOADS:
                self._kept.popitem(last=False)
        return Uploaded(key=key, name=name, rows=len(x), shape=list(x.shape))

    def get(self, key: str) -> UploadedArray:
        """Return an upload; UserError if it is unknown or was forgotten."""
        with self._lock:
            if key not in self._kept:
                raise UserError(f"there is no upload {key} among the last {MAX_UPLOADS}; upload the file again")
            self._kept.move_to_end(key)
            return self._kept[key]


def _read(name: str, content: bytes) -> NDArray[Any]:
    """The array ``x``, or the only array, of a file."""
    suffix = Path(name).suffix.lower()
    if suffix not in (".npz", ".safetensors"):
        raise UserError(f"{name or 'the file'} is no .npz or .safetensors file; upload one with an array x")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix}"
        path.write_bytes(content)
        try:
            if suffix == ".npz":
                arrays = npz.Arrays(path, max_bytes=MAX_BYTES)
                return arrays[_choose(name, list(arrays))]
            with path.open("rb") as file:
                opened = SafetensorsFile(path, file)
                chosen = _choose(name, list(opened.shapes))
                array: NDArray[Any] = opened.read()[chosen].numpy()
                return array
        except (ValueError, TypeError, SafetensorError) as error:  # TypeError: numpy has no bfloat16
            raise UserError(f"{name} cannot be read ({' '.join(str(error).split())[:200]}); save x again") from None
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None


def _choose(name: str, names: list[str]) -> str:
    if "x" in names:
        return "x"
    if len(names) != 1:
        raise UserError(f"{name} holds {', '.join(names[:8]) or 'nothing'}; expected an array called x")
    return names[0]


def _checked(name: str, x: NDArray[Any]) -> NDArray[Any]:
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise UserError(f"x in {name} has shape {x.shape}; expected (rows, N) integers or (rows, N, F) numbers")
    if x.shape[1] > MAX_LENGTH:
        raise UserError(f"x in {name} has {x.shape[1]:,} tokens per row; the limit is {MAX_LENGTH:,}")
    if x.ndim == 2:
        if x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= MAX_TOKENS:
            raise UserError(
                f"x in {name} has shape {x.shape}, dtype {x.dtype} and values from {x.min()} to {x.max()}; tokens are "
                f"integers from 0 to {MAX_TOKENS - 1:,}, and vectors need a third axis"
            )
        return x
    if x.shape[2] > MAX_FEATURES:
        raise UserError(f"x in {name} has {x.shape[2]:,} values per token; the limit is {MAX_FEATURES:,}")
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all() or np.abs(x, dtype=np.float64).max() > 1e30:
        raise UserError(f"x in {name} (dtype {x.dtype}) must hold finite numbers, at most 1e30; replace the others")
    return x
