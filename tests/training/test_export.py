"""Exported networks, and checks of the paths that are written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small import experiment, refused, same, started

import attnlab
from attnlab.files.atomic import UNFINISHED
from attnlab.training.checkpoint import check_output
from attnlab.training.folder import check_save_path
from attnlab.training.listing import rows
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError


def test_list_of_runs(tmp_path: Path) -> None:
    for name in ("b", "a", f"{UNFINISHED}c"):
        started(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{", encoding="utf-8")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    listed = rows(tmp_path)
    assert [(Path(row.run).name, row.status) for row in listed] == [
        ("a", "stopped"),
        ("b", "stopped"),
        ("broken", "damaged"),
    ]
    assert "was not written by attnlab, or altered" in str(listed[2].reason)
    assert rows(tmp_path / "missing") == []


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "models/deep/x.safetensors", "link.pth"])
def test_an_exported_network_is_the_same(
    name: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "link.pth":
        Path(name).symlink_to("not there yet/deep/y.pth")
    before = list(tmp_path.iterdir())
    check_save_path(Path(name))
    assert list(tmp_path.iterdir()) == before, "the check leaves nothing behind"
    Run.open(done).export(Path(name))
    assert Path(name).is_symlink() == (name == "link.pth"), "the file that a link points to is written"
    network, x = attnlab.load(name), experiment().task_data.test
    assert same(network, attnlab.load(done))
    assert not network.training
    assert torch.equal(network(x.x, x.lengths), attnlab.load(done)(x.x, x.lengths))


def test_invalid_save_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.pth").mkdir()
    Path("link.pth").symlink_to("file/x.pth")
    before = sorted(tmp_path.rglob("*"))
    for name, message in {
        "x": "must end in .safetensors, .pth or .pt",
        "x.bin": "must end in .safetensors, .pth or .pt",
        "x.PTH": "must end in .safetensors, .pth or .pt",
        "folder.pth": "is a folder; name a file in it",
        "file/x.pth": "cannot write --save_path file/x.pth: Not a directory",
        "file/deep/x.pth": "cannot write --save_path file/deep/x.pth: Not a directory",
        "/proc/x.pth": "cannot write --save_path /proc/x.pth: ",
        "link.pth": "cannot write --save_path link.pth: Not a directory",
        f"{'x' * 300}.pth": "File name too long",
        f"{'x' * 300}/x.pth": "File name too long",
        f"new/{'x' * 300}/x.pth": "File name too long",
    }.items():
        refused(message, check_save_path, Path(name))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_paths_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch(0o400)
    (tmp_path / "locked").mkdir(0o500)
    for name in ("x.pth", "locked/x.pth", "locked/new/x.pth"):
        with pytest.raises(UserError, match=r"Permission denied"):
            check_save_path(tmp_path / name)


def test_save_path_replaces_only_attnlab_files(done: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_text("mine", encoding="utf-8")
    refused("mine.safetensors exists; give another name, or --overwrite", check_save_path, mine)
    check_save_path(mine, overwrite=True)
    for name in ("ours.safetensors", "ours.pth"):
        Run.open(done).export(tmp_path / name)
        check_save_path(tmp_path / name)
    refused("is a file of the run in", check_save_path, done / "model.safetensors", overwrite=True)
    torch.save({"state_dict": {}}, tmp_path / "theirs.pth")
    refused("theirs.pth exists", check_save_path, tmp_path / "theirs.pth")


def test_output_replaces_neither_existing_files_nor_inputs(tmp_path: Path) -> None:
    read, other = tmp_path / "data.csv", tmp_path / "other.csv"
    for path in (read, other):
        path.write_text("a\n", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(read)
    (tmp_path / "hard.csv").hardlink_to(read)
    check_output(tmp_path / "new.csv", inputs=[read])
    check_output(other, inputs=[read], overwrite=True)
    refused("other.csv exists; give another name, or --overwrite", check_output, other, inputs=[read])
    for name in ("data.csv", "link.csv", "hard.csv"):
        refused("is an input file; give another name", check_output, tmp_path / name, inputs=[read], overwrite=True)
    refused("is a folder", check_output, tmp_path)
