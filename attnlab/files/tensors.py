"""Untrusted files of tensors: the declared sizes are checked against the file before anything is allocated."""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from attnlab.files.atomic import parse_json
from attnlab.utils.errors import UserError

HEADER_BYTES = 2**23
"""The longest header of a safetensors file that is read, in bytes."""
ENTRIES = 100_000
"""The largest number of tensors in one file."""
PICKLE_BYTES = 2**24
"""The longest pickle in a .pth file that is read, in bytes."""
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
}
"""The dtypes of parameters, optimizer states and random states."""
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
_CALLED = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {s}Storage" for s in _STORAGES)}


class Shape(NamedTuple):
    """The dtype and shape of one tensor, as the header declares them."""

    dtype: torch.dtype
    size: tuple[int, ...]


class RefusedError(ValueError):
    """A file that cannot be read; the message gives the reason."""


class UnsafeError(RefusedError):
    """A file that contains more than tensors."""

    def __init__(self, reason: str = "it holds more than tensors, or was altered") -> None:
        super().__init__(reason)


class SafetensorsFile:
    """An open safetensors file with a validated header: ``metadata``, and the ``shapes`` of its tensors.

    Raises:
        RefusedError: for a header that is too long, has too many entries, is not JSON, or has an unknown dtype.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise RefusedError("it is cut short, or no safetensors file")
        if length > HEADER_BYTES:
            raise RefusedError(f"its header has {length:,} bytes; at most {HEADER_BYTES:,} are read")
        header = parse_json(file.read(length))
        if not isinstance(header, dict) or len(header) > ENTRIES:
            raise RefusedError(f"its header lists no tensors, or more than {ENTRIES:,}")
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        self.shapes = {name: _shape(name, entry) for name, entry in header.items()}

    def read(self) -> dict[str, Tensor]:
        """Return the tensors; safetensors refuses offsets that do not cover the file exactly."""
        # By descriptor: the name may refer to another file by now.
        handle = Path(f"/dev/fd/{self._file.fileno()}")
        with safe_open(handle if handle.exists() else self._path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}


def read_pth(file: BinaryIO) -> dict[str, Any]:
    """Return the dictionary of tensors and text that ``torch.save`` wrote.

    Raises:
        UnsafeError: for a file that would call a function, or contains tensors that are larger than the file.
        RefusedError: for a damaged archive.
    """
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or len(entries) > 2 * ENTRIES or sum(entry.file_size for entry in entries) > size:
                raise UnsafeError("it would unpack to more than it holds")
            described = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(described) != 1 or described[0].file_size > PICKLE_BYTES:
                raise UnsafeError
            _check_calls(archive.read(described[0]))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        file.seek(0)
        if file.read(1) == b"\x80":  # a bare pickle
            raise UnsafeError from None
        raise RefusedError(str(error)) from None
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise UnsafeError
    tensors = content.get("state_dict")
    if isinstance(tensors, dict):
        _check_storages(tensors, size)
    return content


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise UserError for the first tensor with NaN or infinity; ``source`` names the file."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{source} has NaN or infinity in {name!r}; restore it, or train again")


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data  # .reshape(-1): a 0-dim tensor has no bytes


def _shape(name: str, entry: Any) -> Shape:
    try:
        dtype, size = entry["dtype"], entry["shape"]
    except (TypeError, KeyError):
        raise RefusedError(f"it does not say what {name!r:.60} is") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise RefusedError(
            f"{name!r:.60} has the dtype {dtype!r:.20}; weights are float64, float32, float16 or bfloat16"
        )
    if not isinstance(size, list) or not all(type(n) is int and 0 <= n < 2**62 for n in size) or len(size) > 64:
        raise RefusedError(f"{name!r:.60} has no shape")
    return Shape(DTYPES[dtype], tuple(size))


def _check_calls(pickle: bytes) -> None:
    """Refuse a pickle that refers to anything but tensors, before it is loaded."""
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            if operation.name in ("GLOBAL", "INST") and argument not in _CALLED:
                module, _, name = str(argument).partition(" ")
                kind = "holds more than tensors" if module.startswith("torch") else f"would run {module}.{name}"
                raise UnsafeError(f"it {kind}")
            if operation.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
                raise UnsafeError
    except UnsafeError:
        raise
    except Exception as error:  # pickletools raises many kinds of errors for invalid data
        raise UnsafeError from error


def _check_storages(tensors: dict[Any, Any], size: int) -> None:
    """Refuse tensors that have more elements than bytes in the file (a stride of zero repeats one)."""
    total = 0
    if len(tensors) > ENTRIES:
        raise RefusedError(f"it lists more than {ENTRIES:,} tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise UnsafeError
        if tensor.dtype not in DTYPES.values():
            raise RefusedError(
                f"{name!r:.60} has the dtype {tensor.dtype}; weights are float64, float32, float16 or bfloat16"
            )
        count = math.prod(tensor.shape) * tensor.element_size()
        total += count
        if tensor.is_meta or count > tensor.untyped_storage().nbytes() or total > size:
            raise RefusedError(f"{name!r:.60} has more elements than the file holds")
