"""Checkpoints: round trip, refusal of damaged files, and atomic writes."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import refused
from torch import Tensor

from attnlab.files.atomic import atomically, write_text
from attnlab.training import checkpoint
from attnlab.training.checkpoint import KEY, load_tensors, save_tensors
from attnlab.utils.errors import UserError

SUFFIXES = [".safetensors", ".pth", ".pt"]
ABOUT = {"step": 3, "named": "näme", "nested": {"list": [1, 2.5, None, True]}}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(5, 3, generator=generator),
        "step": torch.tensor(7.0),
        "half": torch.randn(4, generator=generator).to(torch.bfloat16),
        "state": torch.randint(0, 255, (11,), dtype=torch.uint8, generator=generator),
        "none": torch.empty(0, 3),
        "flag": torch.tensor([True, False]),
        "transposed": torch.randn(2, 3, generator=generator).t(),
    }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a valid file of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for suffix in SUFFIXES:
        save_tensors(folder / f"a{suffix}", tensors(), ABOUT)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_and_reading_by_others(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_tensors(path, tensors(), ABOUT)
    loaded, about = load_tensors(path)
    assert equal(loaded, tensors())
    assert about == ABOUT
    assert list(tmp_path.iterdir()) == [path]
    others = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    assert equal(others, tensors())


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
def test_truncated_file_is_refused(suffix: str, written: dict[str, bytes], scratch: Path, data: st.DataObject) -> None:
    whole = written[suffix]
    path = scratch / f"cut{suffix}"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(str(path), load_tensors, path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
def test_altered_bytes_are_detected(suffix: str, written: dict[str, bytes], scratch: Path, data: st.DataObject) -> None:
    """Unused bytes (padding of a zip, white space in a header) may change; the content may not."""
    altered = bytearray(written[suffix])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    path = scratch / f"altered{suffix}"
    path.write_bytes(altered)
    try:
        loaded, about = load_tensors(path)
    except UserError:
        return
    assert equal(loaded, tensors())
    assert about == ABOUT


def test_rows_that_differ_in_one_byte_are_different(written: dict[str, bytes], tmp_path: Path) -> None:
    whole = written[".safetensors"]
    path = tmp_path / "a.safetensors"
    for at in range(8 + int.from_bytes(whole[:8], "little"), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused("checksum does not match", load_tensors, path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("changed", ["tensors", "description"])
def test_mixed_checkpoints_are_refused(
    changed: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (tensors() | {"step": torch.tensor(8.0)}, ABOUT) if changed == "tensors" else (tensors(), {"step": 4})
    checksum = checkpoint._checksum(*content)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_checksum", lambda *_: checksum)
        save_tensors(tmp_path / f"a{suffix}", tensors(), ABOUT)
    refused("was altered: its checksum does not match", load_tensors, tmp_path / f"a{suffix}")


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("place", ["beside the weights", "in place of all", "a bare pickle"])
def test_pickle_with_code_is_refused_and_not_executed(suffix: str, place: str, tmp_path: Path) -> None:
    path, trace = tmp_path / f"bomb{suffix}", tmp_path / "it ran"
    if place == "a bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(trace), KEY: "{}"}))
    else:
        bomb = Bomb(trace)
        torch.save(bomb if place == "in place of all" else {"state_dict": tensors(), KEY: "{}", "more": bomb}, path)
    match = r"cannot be read safely as a checkpoint: it (would run \S*mkdir|holds more than tensors).*; do not trust"
    with pytest.raises(UserError, match=match):
        load_tensors(path)
    assert not trace.exists()
    if place == "a bare pickle":  # a real one: whoever trusts it sets it off
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, {KEY: "{}"}, [1, 2], torch.zeros(3), {"state_dict": 3, KEY: "{}"}, {"a": torch.ones(2)}],
    ids=repr,
)
def test_foreign_checkpoints_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "theirs.pth")
    refused("theirs.pth", load_tensors, tmp_path / "theirs.pth")


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {KEY: "no json"}, {KEY: "{}"}, {KEY: "[]"}, {KEY: "3"}])
def test_safetensors_of_others_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "theirs.safetensors", metadata)
    refused("theirs.safetensors", load_tensors, tmp_path / "theirs.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_file_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"empty{suffix}").touch()
    for name, message in (("missing", "no checkpoint"), ("folder", "no checkpoint"), ("empty", "empty")):
        refused(message, load_tensors, tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("a bug")])
def test_failed_write_keeps_the_earlier_file(failure: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "earlier")

    def fail() -> None:
        with atomically(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            assert temporary.parent == path.parent, "another file system could not put it in its place at once"
            raise failure

    expected = UserError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        fail()
    if isinstance(failure, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device; the earlier file is whole"
    assert path.read_text("utf-8") == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_failed_first_write_mentions_no_earlier_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory$"):
        write_text(tmp_path / "no folder" / "a.json", "text")


def test_file_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.json", "text")
    finally:
        assert os.umask(before) == 0o027, "the umask is left as it was"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "a.json", tmp_path / "a.json"
    target.write_text("earlier", encoding="utf-8")
    link.symlink_to(target)
    write_text(link, "later", follow=True)
    assert link.is_symlink()
    assert target.read_text("utf-8") == "later"
    write_text(link, "own")
    assert not link.is_symlink()
    assert target.read_text("utf-8") == "later"


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from attnlab.utils.errors import UserError
from attnlab.training.checkpoint import save_tensors

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for path in map(Path, sys.argv[1:]):
    save_tensors(path, {"w": torch.ones(1000)}, {"step": 1})
    try:
        save_tensors(path, {"w": torch.zeros(100_000)}, {"step": 2})
    except UserError as error:
        print(error)
"""


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "a.pth"]
    ran = subprocess.run([sys.executable, "-c", DISK_FULL, *paths], capture_output=True, text=True, check=True)
    for path, line in zip(paths, ran.stdout.splitlines(), strict=True):
        assert line == f"cannot write {path}: File too large; the earlier file is whole"
        loaded, about = load_tensors(path)
        assert about == {"step": 1}
        assert torch.equal(loaded["w"], torch.ones(1000))
    assert sorted(tmp_path.iterdir()) == sorted(paths)
