"""Files that are whole or absent: atomic writes, and tensors with their description and checksum, without pickle.

A checkpoint is one safetensors file. Its metadata hold one JSON object, and in it the SHA-256 of that object
and of every tensor: a file that was cut, altered or put together from two is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attnlab.errors import UserError

KEY = "attnlab"
UNFINISHED = ".attnlab-"
"""How the name of a file begins until it is whole; what a kill leaves of one is swept away later."""
PTH = (".pth", ".pt")


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, on disk, when the block ends well.

    Where ``path`` is a symbolic link, what it points to is replaced.

    Raises:
        UserError: when the file cannot be written (disk full, no permission); the earlier one is then whole.
    """
    temporary: Path | None = None
    try:
        place = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=place.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(place)
        temporary = None
    except OSError as error:
        whole = "; the earlier file is whole" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{whole}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON description of them, atomically, with a checksum over both.

    A path that ends in .pth or .pt gets the same as a plain ``torch.save`` of
    ``{"state_dict": tensors, "attnlab": about}``.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**about, "sha256": _checksum(tensors, about)}
    with atomically(path) as temporary:
        if path.suffix in PTH:
            buffer = io.BytesIO()  # torch's own writer speaks of a full disk in its own way
            torch.save({"state_dict": tensors, KEY: json.dumps(about)}, buffer)
            temporary.write_bytes(buffer.getbuffer())
        else:
            temporary.write_bytes(save(tensors, {KEY: json.dumps(about)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Returns:
        The tensors and their description.

    Raises:
        UserError: a file that is missing, cut, of another program, or altered.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; attnlab runs lists the runs that have one")
    try:
        if path.suffix in PTH:
            found = torch.load(path, map_location="cpu", weights_only=True)
            tensors, text = found["state_dict"], found[KEY]
        else:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {})[KEY]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        about = json.loads(text)
        whole = about.pop("sha256") == _checksum(tensors, about)
    except (KeyError, TypeError):
        raise UserError(f"{path} was not written by attnlab: it does not say which network it is for") from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is truncated or no checkpoint ({reason}); restore it or train again") from None
    except Exception as error:  # the refusals of weights_only, which would advise to trust the file
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {asked[1]}" if asked else "it holds more than tensors, or was altered"
        raise UserError(f"{path} is no checkpoint that can be read safely: {reason}; do not trust it") from None
    if not whole:
        raise UserError(f"{path} was altered: its checksum does not match; restore it or train again")
    return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """The description in a .safetensors checkpoint, read without its tensors, and so without checking its checksum.

    Raises:
        UserError: a file that is missing, cut or of another program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError):
        raise UserError(f"{path} is missing, truncated or no checkpoint; restore it or train again") from None
    if not isinstance(about, dict):
        raise UserError(f"{path} is no checkpoint of attnlab; restore it or train again")
    return about


def _checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # .reshape(-1) makes a 0-dim tensor viewable as bytes
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
