"""Arrays from somebody else: what they declare is looked at first, and nothing in them is executed."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnlab.files import data as data_files
from attnlab.files import npz
from attnlab.files.npz import Arrays
from attnlab.network import Inputs
from attnlab.tasks.base import read_x
from attnlab.utils.errors import UserError

X = np.random.default_rng(7).normal(1e9, 3, (11, 5, 3))


def header(descr: str, shape: str, extra: str = "") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{extra}}}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_as_they_were_saved(save: Any, tmp_path: Path) -> None:
    saved = {"x": X, "y": np.asfortranarray(X[0]), "words": np.array(["a", "bc"]), "none": np.zeros((0, 3))}
    save(tmp_path / "a.npz", **saved)
    arrays = Arrays(tmp_path / "a.npz")
    assert list(arrays) == list(saved)
    assert all(np.array_equal(arrays[name], saved[name]) for name in saved)
    assert arrays["x"].flags.writeable


@pytest.mark.parametrize("x", [X, X > 1e9])
def test_float64_keeps_its_digits(x: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=x)
    read = read_x(tmp_path / "a.npz", Inputs("vectors", 3), 5)
    assert read.dtype == torch.float64
    assert np.array_equal(read.numpy(), x)


def test_entries_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    entries = {"z.npy": b"no array", "evil.py": b"1/0", "y.npz": b"PK", "x.npy": header("'<f8'", "(2, 1)") + b"\0" * 16}
    arrays = Arrays(archive(tmp_path / "a.npz", entries))
    assert list(arrays) == ["z", "x"]
    assert arrays["x"].tolist() == [[0], [0]]
    with pytest.raises(UserError, match=r"no readable \.npz"):
        arrays["z"]


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_ALWAYS", 2**16)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((1_009, 31, 7)))
    size, declared = path.stat().st_size, 128 + 8 * 1_009 * 31 * 7
    assert declared > 100 * size
    with pytest.raises(UserError, match=rf"has {size:,} bytes and declares {declared:,} in x\.npy"):
        Arrays(path)["x"]
    np.savez_compressed(path, x=np.arange(20_011) % 251)  # honest data pass
    assert len(Arrays(path)["x"]) == 20_011


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    monkeypatch.setattr(data_files, "memory_limit", lambda: X.nbytes)
    with pytest.raises(UserError, match=r"takes 1,448 bytes of memory, more than .* \(1,320\)"):
        Arrays(tmp_path / "a.npz")["x"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header("'<f8'", "(1000000000, 1000)") + b"\0" * 64, "x declares 8,000,000,000,128 bytes and has 192"),
        (header("'<f8'", "(3,)") + b"\0" * 64, "x declares 152 bytes and has 192"),
        (header("'<f8'", "(-1,)") + b"\0" * 8, "x has shape (-1,)"),
        (header("'<f8'", "(0, 10000000000000000000000000)"), "no readable .npz"),
        (header("'<U0'", "(1000000000000,)"), "x has shape (1000000000000,) and dtype <U0"),
        (header("'|O'", "(3,)") + b"cos\nsystem\n", "x holds Python objects"),
        (header("[('a', '<f8')]", "(3,)") + b"\0" * 24, "x has shape (3,) and dtype"),
        (header("'<f8'", "(3,)", ", 'more': " + "[" * 200 + "]" * 200), "no readable .npz"),
        (header("'<f8'", "(3,)").replace(b"\x01\x00", b"\x03\x00", 1), "x has version (3, 0)"),
        (header("'<f8'", "__import__('os').abort()"), "no readable .npz"),
        (b"", "no readable .npz"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "no readable .npz"),
    ],
)
def test_headers_that_lie(content: bytes, says: str, tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = archive(tmp_path / "a.npz", {"x.npy": content}, compression)
        with pytest.raises(UserError, match=re.escape(says)) as error:
            Arrays(path)["x"]
        assert "\n" not in str(error.value)


def test_archives_that_numpy_does_not_write(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        content = file.read("x.npy")
    path = archive(tmp_path / "a.npz", {"x.npy": content}, zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="compressed in a way that numpy does not write"):
        Arrays(path)["x"]
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("x.npy", content)
    with pytest.raises(UserError, match="two arrays called x"):
        Arrays(path)
    damaged = bytearray(archive(path, {"x.npy": content}).read_bytes())
    damaged[300] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"Bad CRC-32"):
        Arrays(path)["x"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"z": X}, "holds z; expected an array called x"),
        ({"x": X[:, :, :2]}, "has shape (11, 5, 2); expected (batch, at most 5, 3)"),
        ({"x": X + 1j}, "has dtype complex128; expected numbers"),
        ({"x": np.where(X[4, 1, 1] == X, np.nan, X)}, "holds NaN or infinity"),
        ({"x": np.array([[["a"] * 3] * 5])}, "expected numbers"),
    ],
)
def test_x_that_does_not_fit(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(UserError, match=re.escape(says)):
        read_x(tmp_path / "a.npz", Inputs("vectors", 3), 5)
