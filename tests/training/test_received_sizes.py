"""Received files cannot make attnlab allocate more memory than they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import F, N, refused, same, write_checkpoint

import attnlab
from attnlab.network import Network
from attnlab.training import checkpoint
from attnlab.training.checkpoint import KEY, load_tensors, save_tensors
from attnlab.training.inference import predict_file
from attnlab.utils.errors import UserError


def bomb(path: Path, **described: Any) -> Path:
    """The network file of a small run with another description."""
    tensors, about = load_tensors(path / "model.safetensors")
    write_checkpoint(path / "bomb.safetensors", tensors, {**about, "network": {**about["network"], **described}})
    return path / "bomb.safetensors"


BOMBS: dict[str, dict[str, Any]] = {
    "layers": {"layers": 1_000},
    "too many layers": {"layers": 10**9},
    "tokens": {"inputs": ["tokens", 10**8]},
    "too many tokens": {"inputs": ["tokens", 10**18]},
    "classes": {"outputs": ["classes", 10**9, 1]},
    "slots": {"outputs": ["classes", 2, 10**9]},
    "length": {"length": 10**7},
    "width": {"embed_dim": 65_536},
    "heads": {"options": {"num_heads": 10**9}},
    "head_dim": {"model": "latent", "options": {"num_heads": 2, "head_dim": 10**9}},
    "rotary_dim": {"model": "latent", "options": {"num_heads": 2, "rotary_dim": 65_536}},
    "t5": {"options": {"num_heads": 2, "positions": "t5(buckets=65536)"}},
    "another width": {"embed_dim": 16},
    "heads that do not divide": {"options": {"num_heads": 3}},
    "a type": {"options": {"num_heads": 2.0}},
    "a truth value": {"options": {"num_heads": True}},
    "a list": {"options": {"num_heads": [2]}},
    "no such option": {"options": {"colour": 1}},
    "kept heads": {"heads": {"0": list(range(1_000))}},
}


@pytest.mark.parametrize("which", BOMBS)
def test_network_larger_than_its_file_is_refused_before_allocation(
    which: str, received: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(received, **BOMBS[which])
    make = Network.__init__

    def watched(self: Network, *args: Any, **options: Any) -> None:
        assert torch.empty(0).is_meta, "memory was taken"
        make(self, *args, **options)

    monkeypatch.setattr(Network, "__init__", watched)
    refused("bomb.safetensors", attnlab.load, path)
    refused("bomb.safetensors", predict_file, path, Path("not read"))


def test_unknown_names_are_refused(received: Path) -> None:
    refused("colour", attnlab.load, bomb(received, colour=1))
    refused("unknown model 'multihed'; did you mean multihead", attnlab.load, bomb(received, model="multihed"))


def test_large_number_without_memory_cost_is_accepted(received: Path) -> None:
    options = {"num_heads": 2, "window": 10**12}
    path = bomb(received, model="slidingwindow", options=options)
    x = torch.ones(1, N, F)
    assert torch.allclose(attnlab.load(path)(x), attnlab.load(received)(x), atol=1e-5)


def test_hub_folder_is_validated(received: Path, tmp_path: Path) -> None:
    attnlab.load(received).save_pretrained(tmp_path / "hub")
    assert same(Network.from_pretrained(tmp_path / "hub"), attnlab.load(received))
    file = tmp_path / "hub/config.json"
    config = json.loads(file.read_text("utf-8"))
    texts = {json.dumps({**config, **described}): "model.safetensors" for described in BOMBS.values()}
    texts |= dict.fromkeys(("[" * 100_000, '{"layers": NaN}', "{"), "config.json is damaged")
    for text, message in texts.items():
        file.write_text(text, encoding="utf-8")
        refused(message, Network.from_pretrained, tmp_path / "hub")
    file.unlink()
    os.mkfifo(file)
    refused("config.json is not a regular file", Network.from_pretrained, tmp_path / "hub")


def test_archive_is_not_unpacked_to_identify_it(tmp_path: Path) -> None:
    path = tmp_path / "sent.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"state_dict attnlab" + bytes(2**25))
    assert not checkpoint.is_checkpoint(path)


BOMBS_IN_PTH: dict[str, Callable[[], Any]] = {
    "expanded": lambda: torch.ones(1).expand(10**10),
    "overlapping": lambda: torch.ones(1000).as_strided((1000, 900), (0, 1)),
    "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True),
    "bytearray": lambda: bytearray(3),
    "meta": lambda: torch.empty(10**12, device="meta"),
    "deflated": lambda: torch.ones(1),
}


@pytest.mark.parametrize("which", BOMBS_IN_PTH)
def test_pth_larger_than_its_file_is_refused(which: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": {"weight": BOMBS_IN_PTH[which]()}, KEY: "{}"}, path)
    if which == "deflated":
        with zipfile.ZipFile(path) as stored:
            entries = {name: stored.read(name) for name in stored.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in entries.items():
                packed.writestr(name, content)
    with pytest.raises(UserError, match=r"holds more|would run \S*bytearray|more elements than|unpack to more"):
        load_tensors(path)


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(b"{}", 2**62), "cut short"),
        (header(b" " * (2**23 + 1)), "its header has 8,388,609 bytes; at most 8,388,608 are read"),
        (header(json.dumps({str(i): 0 for i in range(100_001)}).encode()), "or more than 100,000"),
        (header(b"[" * 100_000), "nested too deeply"),
        (header(b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}') + b"1234", "attnlab"),
    ],
    ids=["length", "long", "many", "nested", "shape"],
)
def test_headers_out_of_bounds_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.safetensors").write_bytes(content)
    refused(message, load_tensors, tmp_path / "bomb.safetensors")


def test_invalid_checkpoints_are_not_written(tmp_path: Path) -> None:
    for tensors in ({"a": torch.zeros(2, dtype=torch.complex64)}, {"a": torch.zeros(2).to(torch.float8_e5m2)}):
        with pytest.raises(ValueError, match=r"a checkpoint cannot hold"):
            save_tensors(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(ValueError, match=r"JSON"):
        save_tensors(tmp_path / "a.safetensors", {}, {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"at most 100,000 tensors"):
        save_tensors(tmp_path / "a.safetensors", dict.fromkeys(map(str, range(100_001)), torch.zeros(0)), {})
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
import torch
import attnlab
from attnlab.utils.errors import UserError
from attnlab.training.checkpoint import load_tensors, save_tensors

def used():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line).split()[1])

for name in sys.argv[1:]:
    warm = Path(name).with_name("warm" + Path(name).suffix)
    save_tensors(warm, {"w": torch.ones(10)}, {})
    load_tensors(warm)
    most = used() * 1024 + 3 * 10**8
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if Path(name).exists():
        try:
            attnlab.load(name)
        except UserError as error:
            print("refused")
    else:
        save_tensors(Path(name), {"w": torch.ones(50_000_000)}, {})
        print("saved")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_use_is_bounded(received: Path, tmp_path: Path) -> None:
    """300 MB beyond the imports suffice: no gigabytes for a bomb, and no copy of a tensor of 200 MB."""
    torch.save({"state_dict": {"w": torch.ones(1).expand(10**9)}, KEY: "{}"}, tmp_path / "bomb.pth")
    names = [bomb(received, inputs=["tokens", 10**8]), tmp_path / "bomb.pth", tmp_path / "large.pth"]
    names.append(tmp_path / "large.safetensors")
    ran = subprocess.run([sys.executable, "-c", LIMITED, *map(str, names)], capture_output=True, text=True)
    assert ran.stdout.split() == ["refused", "refused", "saved", "saved"], ran.stderr
