"""Received run folders and networks are refused in one line, or read correctly."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import refused, same, write_checkpoint
from torch import Tensor

import attnlab
from attnlab.training import checkpoint, train
from attnlab.training.checkpoint import KEY, load_tensors
from attnlab.training.experiment import prepare
from attnlab.training.folder import RUN_FILES
from attnlab.training.inference import evaluate_file, predict_file
from attnlab.training.listing import rows
from attnlab.training.loop import Trainer
from attnlab.training.report import write_report
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError


def data_of(path: Path) -> Path:
    return Path(json.loads((path / "config.json").read_text("utf-8"))["settings"]["data"])


def resume(path: Path) -> None:
    run = Run.open(path)
    ready = prepare(run.settings)
    Trainer(ready.network, ready.task_data, ready.settings, run).restore()


def go_on(path: Path) -> None:
    run = Run.open(path)
    train.train(prepare(run.settings), run, resume=True)


def list_runs(folder: Path) -> None:
    for row in rows(folder):
        if row.reason is not None:
            raise UserError(row.reason)


def uses(path: Path, data: Path, trainer: Trainer | None = None) -> dict[str, Callable[[], Any]]:
    """Every function that reads a run; with a trainer also its `restore`."""
    return {
        **({} if trainer is None else {"restore": trainer.restore}),
        "list": lambda: list_runs(path.parent),
        "open": lambda: Run.open(path),
        "load": lambda: attnlab.load(path),
        "evaluate file": lambda: evaluate_file(path, data),
        "evaluate": lambda: train.evaluate_run(Run.open(path)),
        "resume": lambda: resume(path),
        "predict": lambda: predict_file(path, data),
        "finish": lambda: go_on(path),
    }


def refusals(uses: dict[str, Callable[[], Any]], *which: str) -> dict[str, str]:
    """The one-line refusals by these functions; other exceptions are raised."""
    messages = {}
    for name in which:
        try:
            uses[name]()
        except UserError as error:
            messages[name] = str(error)
    assert not [message for message in messages.values() if "\n" in message]
    return messages


def test_unaltered_run_is_accepted(received: Path) -> None:
    every = uses(received, data_of(received))
    assert refusals(every, *every) == {}
    assert [row.status for row in rows(received.parent)] == ["finished"]


# Every field, altered, under a checksum that fits


MISSING = object()
WRONG: tuple[Any, ...] = (
    MISSING, None, True, "rmse", "\ud800", "wörd\x1b[2J", -1, 10**30, 0.5, float("nan"), [], {}, [[1]],
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every entry of a JSON value; of a list its first element."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def altered(value: Any, at: tuple[Any, ...], wrong: Any) -> Any:
    """A copy of a JSON value with another value at a path."""
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if wrong is MISSING:
        del inner[at[-1]]
    else:
        inner[at[-1]] = wrong
    return value


def write_config(path: Path, config: dict[str, Any], *, alone: bool = False) -> None:
    """Write a config with its checksum, and unless ``alone`` put its id into the checkpoints, as an attacker would."""
    config = {key: value for key, value in config.items() if key != "sha256"}
    config["sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in () if alone else ("model.safetensors", "state.safetensors"):
        tensors, about = load_tensors(path / name)
        write_checkpoint(path / name, tensors, {**about, "run": config["sha256"]})


GATES = {
    "config.json": ("open", ("evaluate", "resume", "predict", "finish")),
    "model.safetensors": ("load", ("evaluate", "predict")),
    "state.safetensors": ("restore", ("finish",)),
    "exported.safetensors": ("load", ("evaluate file", "predict")),
    "metrics.jsonl": ("list", ("finish",)),
    "result.json": ("list", ()),
}
"""The first reader of each file, and the functions tried if it does not refuse."""


@pytest.mark.usefixtures("no_curve")
@pytest.mark.parametrize("name", GATES)
def test_every_altered_field_is_refused_or_read_right(name: str, received: Path) -> None:
    gate, then = GATES[name]
    run, file, data = Run.open(received), received / name, data_of(received)
    if name == "exported.safetensors":
        run.export(file)
    ready = prepare(run.settings)
    trainer = Trainer(ready.network, ready.task_data, ready.settings, run)
    every = uses(file if name == "exported.safetensors" else received, data, trainer)
    before = file.read_bytes()
    all_before = {path: path.read_bytes() for path in received.iterdir()}
    if name.endswith(".safetensors"):
        tensors, value = load_tensors(file)
    else:
        value = json.loads(before.splitlines()[0] if name == "metrics.jsonl" else before)
    tried = read = 0
    for at in places(value):
        if name == "config.json" and at in (("sha256",), ("settings", "compile")):
            continue
        for wrong in WRONG:
            changed = altered(value, at, wrong)
            if changed == value:
                continue
            tried += 1
            if name == "config.json":
                write_config(received, changed, alone=True)
            elif name.endswith(".safetensors"):
                write_checkpoint(file, tensors, changed)
            else:
                lines = before.split(b"\n", 1)[1] if name == "metrics.jsonl" else b""
                file.write_bytes(json.dumps(changed).encode() + b"\n" + lines)
            try:
                if refusals(every, gate):
                    continue
                read += 1
                if read % 29 == 1:  # which fields these are differs from file to file
                    if name == "config.json":
                        write_config(received, changed)
                    refusals(every, *then)
            except Exception as error:
                raise AssertionError(f"{name}: {at} = {wrong!a}") from error
            for path, content in all_before.items():
                path.write_bytes(content)
    assert tried > 50
    assert read < tried / 2


def test_invalid_encoding_is_refused(received: Path) -> None:
    tensors, about = load_tensors(received / "model.safetensors")
    path = received / "sent.safetensors"
    for encoding in ({}, {**about["encoding"], "labels": [1]}, {**about["encoding"], "shift": "x"}):
        write_checkpoint(path, tensors, {**about, "encoding": encoding})
        refused("sent.safetensors has an encoding that does not match its task", predict_file, path, data_of(received))


# Tensors


def nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone() if tensor.is_floating_point() else tensor.double()
    tensor.view(-1)[-1] = float("nan")
    return tensor


TENSORS: dict[str, Callable[[dict[str, Tensor], str], Any]] = {
    "none at all": lambda tensors, name: tensors.clear(),
    "one missing": lambda tensors, name: tensors.pop(name),
    "one too many": lambda tensors, name: tensors.update({"colour": torch.ones(2)}),
    "another shape": lambda tensors, name: tensors.update({name: tensors[name][..., None].contiguous()}),
    "transposed": lambda tensors, name: tensors.update({name: torch.zeros(8, 3 * 8 + 1)}),
    "float8": lambda tensors, name: tensors.update({name: tensors[name].float().to(torch.float8_e4m3fn)}),
    "complex": lambda tensors, name: tensors.update({name: tensors[name].to(torch.complex64)}),
    "integers": lambda tensors, name: tensors.update({name: tensors[name].to(torch.int64)}),
    "truth values": lambda tensors, name: tensors.update({name: tensors[name] > 0}),
    "mixed": lambda tensors, name: tensors.update({name: tensors[name].double()}),
    "NaN": lambda tensors, name: tensors.update({name: nan(tensors[name])}),
    "infinite": lambda tensors, name: tensors.update({name: tensors[name].double() / 0}),
}


@pytest.mark.parametrize("wrong", TENSORS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_altered_parameters_are_refused(wrong: str, suffix: str, received: Path) -> None:
    tensors, about = load_tensors(received / "model.safetensors")
    TENSORS[wrong](tensors, "readout.weight")
    path, which = received, {"load", "predict", "evaluate", "resume", "finish"}
    if suffix == ".pth":
        path, which = received / "sent.pth", {"load", "predict"}
        about["sha256"] = checkpoint._checksum(tensors, about)
        torch.save({"state_dict": tensors, KEY: json.dumps(about)}, path)
    else:
        write_checkpoint(received / "model.safetensors", tensors, about)
    refusal = refusals(uses(path, data_of(received)), *which)
    assert refusal.keys() == which
    if wrong == "NaN":
        assert "has NaN or infinity in 'readout.weight'" in refusal["load"]


@pytest.mark.parametrize("wrong", TENSORS)
@pytest.mark.parametrize("name", ["model.readout.weight", "optimizer.0.exp_avg", "optimizer.0.step", "random.cpu"])
def test_an_altered_state_is_refused(wrong: str, name: str, received: Path) -> None:
    tensors, about = load_tensors(received / "state.safetensors")
    TENSORS[wrong](tensors, name)
    write_checkpoint(received / "state.safetensors", tensors, about)
    assert refusals(uses(received, data_of(received)), "resume", "finish").keys() == {"resume", "finish"}


# Links and special files


def test_code_does_not_leave_the_folder_through_a_link(received: Path, tmp_path: Path) -> None:
    """A report that links to a .pth file in site-packages, and a setting with a line of code."""
    (tmp_path / "site-packages").mkdir()
    pth = tmp_path / "site-packages" / "sent.pth"
    pth.write_text("", encoding="utf-8")
    result = Run.open(received).result()
    code = "y\nimport os; os.mkdir('it ran')\n```\n"
    config = json.loads((received / "config.json").read_text("utf-8"))
    write_config(received, {**config, "settings": {**config["settings"], "target": code}})
    for name in ("report.md", "curve.png"):
        (received / name).unlink()
        (received / name).symlink_to(pth)
    assert result is not None
    write_report(Run.open(received), {**result, "remark": "`a`|<b>\nimport os"})
    assert pth.read_text("utf-8") == ""
    assert not (received / "report.md").is_symlink()
    text = (received / "report.md").read_text("utf-8")
    assert not [line for line in text.splitlines() if line.startswith("import ")]
    assert text.count("\n```") == 2, "the block of code ends once"
    assert r"| target | y\\nimport os; os.mkdir('it ran')\\n\`\`\`\\n |" in text
    assert r"--target $'y\nimport os; os.mkdir(\'it ran\')\n```\n'" in text
    assert r"\`a\`\|&lt;b>\\nimport os" in text


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])
@pytest.mark.parametrize("name", RUN_FILES[:5])
def test_irregular_run_files_are_refused(kind: str, name: str, received: Path) -> None:
    """Links are not followed, and a pipe does not block."""
    outside = received.parent / "outside"
    shutil.copy(received / name, outside)
    before = outside.read_bytes()
    (received / name).unlink()
    if kind == "fifo":
        os.mkfifo(received / name)
    elif kind == "folder":
        (received / name).mkdir()
    else:
        (received / name).symlink_to(outside if kind == "link" else received.parent / "missing")
    every = uses(received, Path("not read"))
    gate = {"model.safetensors": "load", "state.safetensors": "resume"}.get(name, "list")
    assert refusals(every, gate).keys() == {gate}
    refusals(every, "finish")
    assert outside.read_bytes() == before
    assert not (received.parent / "missing").exists()


@pytest.mark.parametrize("name", RUN_FILES[5:7])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
def test_writing_replaces_links(kind: str, name: str, received: Path) -> None:
    outside = received.parent / "outside"
    outside.write_text("untouched", encoding="utf-8")
    for written in {name, "result.json"}:
        (received / written).unlink()
    if kind == "fifo":
        os.mkfifo(received / name)
    else:
        (received / name).symlink_to(outside) if kind == "link" else (received / name).hardlink_to(outside)
    go_on(received)
    assert outside.read_text("utf-8") == "untouched"
    assert (received / name).is_file()
    assert not (received / name).is_symlink()
    assert Run.open(received).result() is not None


def test_hard_linked_metrics_are_not_appended_to(received: Path) -> None:
    outside = received.parent / "outside"
    outside.hardlink_to(received / "metrics.jsonl")
    before, run = outside.read_bytes(), Run.open(received)
    line = {**run.metrics()[-1], "step": 4}
    refused("metrics.jsonl is a link or no regular file, so it is not written to", run.log, line)
    run.rewind(3)
    run.log(line)
    assert outside.read_bytes() == before
    assert run.metrics()[-1] == line


def test_the_folder_itself_may_be_a_link(received: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(received)
    assert same(attnlab.load(tmp_path / "link"), attnlab.load(received))
