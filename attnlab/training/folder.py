"""Where the folder of a run can be created, and how an earlier run is replaced."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path

from attnlab.files.atomic import UNFINISHED
from attnlab.training import records
from attnlab.training.checkpoint import check_output
from attnlab.training.locks import is_locked, lock
from attnlab.utils.errors import UserError

RUNS = Path("runs")
RUN_FILES = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "state.safetensors",
    "result.json",
    "report.md",
    "curve.png",
    "confusion.png",
)
"""The files of a run; ``--overwrite`` removes these, and nothing else."""
SNAPSHOTS = "snapshots"
"""The folder in a run's folder that holds the networks at some steps of training."""
_SNAPSHOT = re.compile(r"step-([0-9]{8,9})\.safetensors")
REPLACED = ".replaced"
"""The suffix of an earlier run that is being replaced: ``.attnlab-NAME.replaced``."""
ABANDONED = 3600
"""Seconds after which an unfinished folder that no process has locked is removed."""


def check_run_dir(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where no run folder can be created; with ``overwrite`` it may be a run, and nothing else."""
    restore_replaced(path)
    try:
        try_to_make(path)
    except OSError as error:
        raise UserError(f"cannot make --run_dir {path}: {error.strerror}") from None
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists; give another --run_dir, --resume {path}, or --overwrite to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not looks_like_a_run(path)):
        raise UserError(f"--overwrite replaces run folders only, and {path} is none; give another --run_dir")
    if others := _others(path):
        raise UserError(
            f"--overwrite removes only what a run wrote, and {path} also holds {', '.join(others[:3])}"
            f"{' ...' if len(others) > 3 else ''}; move that, or give another --run_dir"
        )


def check_save_path(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a path that the network cannot be saved to, before training; leaves nothing behind."""
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"--save_path {path} must end in .safetensors, .pth or .pt")
    try:
        check_output(path, overwrite=overwrite, flag="--save_path", ours=True)
        try_to_make(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write --save_path {path}: {error.strerror}") from None
    target = Path(os.path.realpath(path))
    owner = target.parent.parent if target.parent.name == SNAPSHOTS else target.parent
    if (target.name in RUN_FILES or owner != target.parent) and looks_like_a_run(owner):
        raise UserError(f"--save_path {path} is a file of the run in {target.parent}; give another name")


def snapshot_name(step: int) -> str:
    """The name of the file of a snapshot."""
    return f"step-{step:08d}.safetensors"


def snapshots(path: Path) -> dict[int, Path]:
    """The files of the snapshots of a run by their step; links are not followed."""
    parent = path / SNAPSHOTS
    if parent.is_symlink() or not parent.is_dir():
        return {}
    named = ((_SNAPSHOT.fullmatch(file.name), file) for file in parent.iterdir())
    steps = {int(match[1]): file for match, file in named if match and not file.is_dir()}
    return {step: file for step, file in steps.items() if file.name == snapshot_name(step)}


def make_snapshots(parent: Path) -> None:
    """Make the folder of the snapshots; UserError if there is a link or a file in its place."""
    try:
        parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {parent}: {error.strerror}") from None
    if parent.is_symlink():
        raise UserError(f"{parent} is a link, so it is not written to; replace it by a copy")


def looks_like_a_run(path: Path) -> bool:
    """Whether a folder has a config.json written by attnlab, even a damaged one."""
    try:
        return {"format", "attnlab", "settings"} <= set(records.read(path / "config.json"))
    except (UserError, ValueError, TypeError):
        return False


def try_to_make(path: Path) -> None:
    """Raise an OSError if a file or a folder cannot be created; leaves nothing behind."""
    target = Path(os.path.realpath(path))  # follows a link
    folder = target.parent
    while not os.path.lexists(folder):  # the first existing parent
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in target.relative_to(folder).parts:  # is the name valid?
        with contextlib.suppress(FileNotFoundError):
            (folder / name).lstat()


def sweep(folder: Path) -> None:
    """Restore earlier runs that killed processes were replacing, and remove unfinished folders."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        if leftover.name.endswith(REPLACED):  # at any age: it may be the only copy
            restore_replaced(folder / leftover.name.removeprefix(UNFINISHED).removesuffix(REPLACED))
            continue
        with contextlib.suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > ABANDONED:  # a newer one may still be written
                _remove(leftover)


def restore_replaced(path: Path) -> None:
    """Restore an earlier run whose replacement was interrupted.

    The earlier run is removed if another run is in its place, and kept if anything else is.
    """
    target = Path(os.path.realpath(path))
    earlier = target.with_name(f"{UNFINISHED}{target.name}{REPLACED}")
    with contextlib.suppress(OSError):
        if not earlier.is_dir() or earlier.is_symlink() or is_locked(earlier):
            return
        if looks_like_a_run(target):
            _remove(earlier)
        else:
            earlier.rename(target)  # fails if the target is more than an empty folder


def take_number(new: Path, stem: str) -> Path:
    """Move a new run to the next free number; returns its path."""
    number = 1
    while True:
        path = RUNS / f"{stem}-{number:03d}"
        try:
            path.mkdir()  # atomic: the process that creates the folder owns the number
        except FileExistsError:
            number += 1
            continue
        new.replace(path)
        return path


def replace(new: Path, path: Path) -> None:
    """Move a new run to ``path``. If the process is killed, one of the runs is at ``path`` or restored by `sweep`."""
    if not path.exists():
        new.replace(path)
        return
    handle = lock(path)  # moves with the folder, so that no sweep takes it meanwhile
    try:
        earlier = path.with_name(f"{UNFINISHED}{path.name}{REPLACED}")
        path.rename(earlier)
        try:
            new.rename(path)
        except OSError:
            earlier.rename(path)
            raise
        _remove(earlier)
    finally:
        os.close(handle)


def remove_unfinished(path: Path) -> None:
    """Remove the incomplete files that a killed process left in a run's folder."""
    folders = [path] if (path / SNAPSHOTS).is_symlink() else [path, path / SNAPSHOTS]
    for leftover in (file for each in folders for file in each.glob(f"{UNFINISHED}*")):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _remove(folder: Path) -> None:
    """Remove a run's folder, unless it is a link or holds other files."""
    if folder.is_symlink():
        return
    remove_unfinished(folder)
    for file in (*(folder / name for name in RUN_FILES), *snapshots(folder).values()):
        with contextlib.suppress(OSError):
            file.unlink()
    for emptied in (folder / SNAPSHOTS, folder):
        with contextlib.suppress(OSError):
            emptied.rmdir()


def _others(folder: Path) -> list[str]:
    """The names in a folder that no run wrote, also in its folder of snapshots."""
    inside, entries = folder / SNAPSHOTS, set(folder.iterdir())
    if inside in entries and inside.is_dir() and not inside.is_symlink():
        entries = entries - {inside} | set(inside.iterdir())
    ours = {*(folder / name for name in RUN_FILES), *snapshots(folder).values()}
    return sorted(
        str(entry.relative_to(folder))
        for entry in entries
        if not (entry in ours or entry.name.startswith(UNFINISHED)) or (entry.is_dir() and not entry.is_symlink())
    )
