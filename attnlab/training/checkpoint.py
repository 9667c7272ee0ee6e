"""Checkpoints: tensors with a description and a checksum in one file, without pickle.

A checkpoint is one safetensors file. Its metadata hold one JSON object with the SHA-256 of that object and of every
tensor, so that a truncated or altered file is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from attnlab.files.atomic import atomically, open_regular, parse_json
from attnlab.files.tensors import (
    DTYPES,
    ENTRIES,
    HEADER_BYTES,
    PICKLE_BYTES,
    SafetensorsFile,
    Shape,
    UnsafeError,
    as_bytes,
    read_pth,
)
from attnlab.utils.errors import UserError

KEY = "attnlab"
PTH = (".pth", ".pt")

Check = Callable[[dict[str, Any], dict[str, Shape]], None]
"""Validates the description and the shapes before the tensors are read."""


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], *, follow: bool = False) -> None:
    """Write tensors and a JSON description of them, atomically, with a checksum over both; no tensor is copied.

    For .pth and .pt the content is a plain ``torch.save`` of ``{"state_dict": tensors, "attnlab": about}``. Raises a
    ValueError for what `load_tensors` would refuse: another dtype, NaN in the description, too many tensors.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if wrong := {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in DTYPES.values()}:
        raise ValueError(f"a checkpoint cannot hold {wrong}")
    text = json.dumps({**about, "sha256": _checksum(tensors, about)}, allow_nan=False)
    if len(tensors) > ENTRIES or len(text) + sum(len(name) + 200 for name in tensors) > HEADER_BYTES:
        raise ValueError(f"a checkpoint holds at most {ENTRIES:,} tensors and {HEADER_BYTES:,} bytes of description")
    with atomically(path, follow=follow) as temporary:
        if path.suffix in PTH:
            with temporary.open("wb") as file:
                writer = _Writer(file)
                try:
                    torch.save({"state_dict": tensors, KEY: text}, writer)  # type: ignore[arg-type]
                except RuntimeError as error:  # torch's writer hides the error of a full disk
                    raise writer.error or error from None
        else:
            try:
                save_file(tensors, temporary, {KEY: text})
            except SafetensorError as error:
                code = re.search(r"os error (\d+)", str(error))
                if code is None:
                    raise
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def load_tensors(
    path: Path, check: Check | None = None, *, follow: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the description that `save_tensors` wrote; every damaged or foreign file is refused.

    Args:
        path: the file.
        check: called with the description and the shapes; for safetensors before any tensor is read.
        follow: allow symbolic links.
    """
    if not os.path.lexists(path) or path.is_dir():
        raise UserError(f"there is no checkpoint {path}; attnlab runs lists the runs that have one")
    with open_regular(path, follow=follow) as file:
        try:
            if path.suffix in PTH:
                content = read_pth(file)
                tensors, about = content["state_dict"], _description(content[KEY])
                shapes = {name: Shape(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            else:
                opened = SafetensorsFile(path, file)
                about, shapes = _description(opened.metadata[KEY]), opened.shapes
            checksum = about.pop("sha256")
            if check is not None:
                check(about, shapes)
            if path.suffix not in PTH:
                tensors = opened.read()
            whole = checksum == _checksum(tensors, about)
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path} was not written by attnlab: it lacks the description of its network") from None
        except UnsafeError as error:
            raise UserError(f"{path} cannot be read safely as a checkpoint: {error}; do not trust it") from None
        except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(f"{path} is truncated or not a checkpoint ({reason}); restore it or train again") from None
        except Exception:  # errors of weights_only, whose text advises to trust the file
            raise UserError(
                f"{path} cannot be read safely as a checkpoint: it holds more than tensors, or was altered; do "
                "not trust it"
            ) from None
    if not whole:
        raise UserError(f"{path} was altered: its checksum does not match; restore it or train again")
    return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """The description in a .safetensors checkpoint; tensors and checksum are not read."""
    with open_regular(path) as file:
        try:
            about = _description(SafetensorsFile(path, file).metadata[KEY])
        except (UnsafeError, SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is truncated or not a checkpoint; restore it or train again") from None
    about.pop("sha256", None)
    return about


def is_checkpoint(path: Path) -> bool:
    """Whether a file was written by `save_tensors`, even if it is damaged."""
    with contextlib.suppress(UserError, ValueError, OSError, KeyError, zipfile.BadZipFile), open_regular(path) as file:
        if path.suffix not in PTH:
            return KEY in SafetensorsFile(path, file).metadata
        with zipfile.ZipFile(file) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            small = (entry for entry in pickles[:1] if entry.file_size <= PICKLE_BYTES)
            return any(b"state_dict" in (text := archive.read(entry)) and KEY.encode() in text for entry in small)
    return False


def check_output(
    path: Path, *, inputs: Iterable[Path] = (), overwrite: bool = False, flag: str = "--output", ours: bool = False
) -> None:
    """Refuse an output file that is a folder, or would replace a file that attnlab did not write.

    Args:
        path: the output file.
        inputs: the input files, which are never replaced.
        overwrite: allow replacing an existing file.
        flag: the flag with the path, for messages.
        ours: allow replacing a checkpoint of attnlab without ``overwrite``.
    """
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; name a file in it")
    for read in inputs:
        with contextlib.suppress(OSError):
            if path.samefile(read):
                raise UserError(f"{flag} {path} is an input file; give another name")
    if os.path.lexists(path) and path.exists() and not overwrite and not (ours and is_checkpoint(path.resolve())):
        raise UserError(f"{flag} {path} exists; give another name, or --overwrite")


class _Writer(io.RawIOBase):
    """A file that stores the error of a failed write, which torch's writer hides."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def _description(text: Any) -> dict[str, Any]:
    about = parse_json(text) if isinstance(text, str) else None
    if not isinstance(about, dict):
        raise TypeError
    return about


def _checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()
