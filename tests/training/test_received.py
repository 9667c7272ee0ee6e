"""Received run folders and networks are refused in one line, or read correctly."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small import same
from torch import Tensor

import attnlab
from attnlab.network import Network
from attnlab.training import checkpoint, train
from attnlab.training.checkpoint import KEY, load_tensors, save_tensors
from attnlab.training.experiment import prepare
from attnlab.training.folder import RUN_FILES
from attnlab.training.inference import evaluate_file, predict_file
from attnlab.training.listing import Damaged, find
from attnlab.training.loop import Trainer
from attnlab.training.report import write_report
from attnlab.training.runs import Run
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError

ROWS, N, F, CLASSES = 61, 5, 3, 2


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run on a small file of arrays without baselines, read-only."""
    folder = tmp_path_factory.mktemp("sent")
    x = np.random.default_rng(0).normal(size=(ROWS, N, F)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=np.array(["no", "yes"])[(x[:, 0, 0] > 0).astype(int)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.tasks._supervised.classifiers", lambda *_: [])
        small = {"embed_dim": 8, "num_heads": 2, "layers": 1, "steps": 3, "data": str(folder / "data.npz")}
        ready = prepare(defaults("multihead", "arrays").updated(small, "the test"))
        run = train.start(ready, folder / "run")
        train.train(ready, run)
        yield folder / "run"


@pytest.fixture
def copied(sent: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(sent, tmp_path / "run"))


def data_of(path: Path) -> Path:
    return Path(json.loads((path / "config.json").read_text("utf-8"))["settings"]["data"])


def resume(path: Path) -> None:
    run = Run.open(path)
    ready = prepare(run.settings)
    Trainer(ready.network, ready.task_data, ready.settings, run).restore()


def go_on(path: Path) -> None:
    run = Run.open(path)
    train.train(prepare(run.settings), run, resume=True)


def uses(path: Path, data: Path, trainer: Trainer | None = None) -> dict[str, Callable[[], Any]]:
    """Every function that reads a run; with a trainer also its `restore`."""
    return {
        **({} if trainer is None else {"restore": trainer.restore}),
        "list": lambda: [error(run.reason) for run in find(path.parent) if isinstance(run, Damaged)],
        "open": lambda: Run.open(path),
        "load": lambda: attnlab.load(path),
        "evaluate file": lambda: evaluate_file(path, data),
        "evaluate": lambda: train.evaluate_run(Run.open(path)),
        "resume": lambda: resume(path),
        "predict": lambda: predict_file(path, data),
        "finish": lambda: go_on(path),
    }


def error(reason: str) -> None:
    raise UserError(reason)


def refusals(uses: dict[str, Callable[[], Any]], *which: str) -> dict[str, str]:
    """The one-line refusals by these functions; other exceptions are raised."""
    refused = {}
    for name in which:
        try:
            uses[name]()
        except UserError as error:
            refused[name] = str(error)
    assert not [message for message in refused.values() if "\n" in message]
    return refused


def test_unaltered_run_is_accepted(copied: Path) -> None:
    every = uses(copied, data_of(copied))
    assert refusals(every, *every) == {}
    assert [type(run) for run in find(copied.parent)] == [Run]


# Every field, altered, under a checksum that fits


MISSING = object()
WRONG: tuple[Any, ...] = (
    MISSING,
    None,
    True,
    "rmse",
    "\ud800",
    "wörd\x1b[2J",
    -1,
    10**30,
    0.5,
    float("nan"),
    [],
    {},
    [[1]],
)


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


def write_checkpoint(path: Path, tensors: dict[str, Tensor], about: Any) -> None:
    """Write an invalid checkpoint with a valid checksum."""
    if isinstance(about, dict):
        about = {**about, "sha256": checkpoint._checksum(tensors, about)}
    path.unlink(missing_ok=True)
    save_file(tensors, path, {KEY: json.dumps(about)})


def about_in(path: Path) -> dict[str, Any]:
    return load_tensors(path)[1]


GATES = {
    "config.json": ("open", ("evaluate", "resume", "predict", "finish")),
    "model.safetensors": ("load", ("evaluate", "predict")),
    "state.safetensors": ("restore", ("finish",)),
    "exported.safetensors": ("load", ("evaluate file", "predict")),
    "metrics.jsonl": ("list", ("finish",)),
    "result.json": ("list", ()),
}
"""The first reader of each file, and the functions tried if it does not refuse."""


@pytest.mark.parametrize("name", GATES)
def test_every_altered_field_is_refused_or_read_right(name: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.training.report.draw_curve", lambda *_: None)  # most of the time
    gate, then = GATES[name]
    run, file, data = Run.open(copied), copied / name, data_of(copied)
    if name == "exported.safetensors":
        run.export(file)
    ready = prepare(run.settings)
    trainer = Trainer(ready.network, ready.task_data, ready.settings, run)
    every = uses(file if name == "exported.safetensors" else copied, data, trainer)
    before = file.read_bytes()
    all_before = {path: path.read_bytes() for path in copied.iterdir()}
    if name.endswith(".safetensors"):
        value = about_in(file)
        tensors = load_tensors(file)[0]
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
                write_config(copied, changed, alone=True)
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
                        write_config(copied, changed)
                    refusals(every, *then)
            except Exception as error:
                raise AssertionError(f"{name}: {at} = {wrong!a}") from error
            for path, content in all_before.items():
                path.write_bytes(content)
    assert tried > 50
    assert read < tried / 2


def test_invalid_encoding_is_refused(copied: Path) -> None:
    tensors, about = load_tensors(copied / "model.safetensors")
    data = data_of(copied)
    for encoding in ({}, {**about["encoding"], "labels": [1]}, {**about["encoding"], "shift": "x"}):
        write_checkpoint(copied / "sent.safetensors", tensors, {**about, "encoding": encoding})
        with pytest.raises(UserError, match=r"sent\.safetensors has an encoding that does not match its task"):
            predict_file(copied / "sent.safetensors", data)


# Tensors


def nan(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = float("nan")
    return tensor


TENSORS: dict[str, Callable[[dict[str, Tensor], str], Any]] = {
    "none at all": lambda tensors, name: tensors.clear(),
    "one missing": lambda tensors, name: tensors.pop(name),
    "one too many": lambda tensors, name: tensors.update({"colour": torch.ones(2)}),
    "another shape": lambda tensors, name: tensors.update({name: tensors[name][..., None].contiguous()}),
    "transposed": lambda tensors, name: tensors.update({name: torch.zeros(8, 3 * 8 + 1)}),
    "float8": lambda tensors, name: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}),
    "complex": lambda tensors, name: tensors.update({name: tensors[name].to(torch.complex64)}),
    "integers": lambda tensors, name: tensors.update({name: tensors[name].to(torch.int64)}),
    "truth values": lambda tensors, name: tensors.update({name: tensors[name] > 0}),
    "mixed": lambda tensors, name: tensors.update({name: tensors[name].double()}),
    "NaN": lambda tensors, name: tensors.update({name: nan(tensors[name])}),
    "infinite": lambda tensors, name: tensors.update({name: tensors[name] / 0}),
}


@pytest.mark.parametrize("wrong", TENSORS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_altered_parameters_are_refused(wrong: str, suffix: str, copied: Path) -> None:
    tensors, about = load_tensors(copied / "model.safetensors")
    TENSORS[wrong](tensors, "readout.weight")
    about["sha256"] = checkpoint._checksum(tensors, about)
    if suffix == ".pth":
        torch.save({"state_dict": tensors, KEY: json.dumps(about)}, copied / "sent.pth")
    else:
        save_file(tensors, copied / "model.safetensors", {KEY: json.dumps(about)})
    path = copied if suffix == ".safetensors" else copied / "sent.pth"
    every = uses(path, data_of(copied))
    which = ("load", "predict", "evaluate", "resume", "finish") if suffix == ".safetensors" else ("load", "predict")
    refused = refusals(every, *which)
    assert refused.keys() == set(which)
    if wrong == "NaN":
        assert "has NaN or infinity in 'readout.weight'" in refused["load"]


@pytest.mark.parametrize("wrong", TENSORS)
@pytest.mark.parametrize("name", ["model.readout.weight", "optimizer.0.exp_avg", "optimizer.0.step", "random.cpu"])
def test_an_altered_state_is_refused(wrong: str, name: str, copied: Path) -> None:
    tensors, about = load_tensors(copied / "state.safetensors")
    if name == "random.cpu" and wrong in ("NaN", "infinite", "mixed"):
        tensors[name] = tensors[name].double()
    if name == "random.cpu" and wrong == "float8":
        tensors[name] = tensors[name].float()
    TENSORS[wrong](tensors, name)
    write_checkpoint(copied / "state.safetensors", tensors, about)
    assert refusals(uses(copied, data_of(copied)), "resume", "finish").keys() == {"resume", "finish"}


# Links and special files


def test_code_does_not_leave_the_folder_through_a_link(copied: Path, tmp_path: Path) -> None:
    """A report that links to a .pth file in site-packages, and a setting with a line of code."""
    (tmp_path / "site-packages").mkdir()
    pth = tmp_path / "site-packages" / "sent.pth"
    pth.write_text("", encoding="utf-8")
    result = Run.open(copied).result()
    code = "y\nimport os; os.mkdir('it ran')\n```\n"
    config = json.loads((copied / "config.json").read_text("utf-8"))
    write_config(copied, {**config, "settings": {**config["settings"], "target": code}})
    for name in ("report.md", "curve.png"):
        (copied / name).unlink()
        (copied / name).symlink_to(pth)
    assert result is not None
    write_report(Run.open(copied), {**result, "remark": "`a`|<b>\nimport os"})
    assert pth.read_text("utf-8") == ""
    assert not (copied / "report.md").is_symlink()
    text = (copied / "report.md").read_text("utf-8")
    assert not [line for line in text.splitlines() if line.startswith("import ")]
    assert text.count("\n```") == 2, "the block of code ends once"
    assert r"| target | y\\nimport os; os.mkdir('it ran')\\n\`\`\`\\n |" in text
    assert r"--target $'y\nimport os; os.mkdir(\'it ran\')\n```\n'" in text
    assert r"\`a\`\|&lt;b>\\nimport os" in text


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder"])
@pytest.mark.parametrize("name", RUN_FILES[:5])
def test_irregular_run_files_are_refused(kind: str, name: str, copied: Path) -> None:
    """Links are not followed, and a pipe does not block."""
    outside = copied.parent / "outside"
    shutil.copy(copied / name, outside)
    before = outside.read_bytes()
    (copied / name).unlink()
    if kind == "fifo":
        os.mkfifo(copied / name)
    elif kind == "folder":
        (copied / name).mkdir()
    else:
        (copied / name).symlink_to(outside if kind == "link" else copied.parent / "missing")
    every = uses(copied, Path("not read"))
    gate = {"model.safetensors": "load", "state.safetensors": "resume"}.get(name, "list")
    assert refusals(every, gate).keys() == {gate}
    refusals(every, "finish")
    assert outside.read_bytes() == before
    assert not (copied.parent / "missing").exists()


@pytest.mark.parametrize("name", RUN_FILES[5:7])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
def test_writing_replaces_links(kind: str, name: str, copied: Path) -> None:
    outside = copied.parent / "outside"
    outside.write_text("untouched", encoding="utf-8")
    for written in {name, "result.json"}:
        (copied / written).unlink()
    if kind == "fifo":
        os.mkfifo(copied / name)
    else:
        (copied / name).symlink_to(outside) if kind == "link" else (copied / name).hardlink_to(outside)
    go_on(copied)
    assert outside.read_text("utf-8") == "untouched"
    assert (copied / name).is_file()
    assert not (copied / name).is_symlink()
    assert Run.open(copied).result() is not None


def test_hard_linked_metrics_are_not_appended_to(copied: Path) -> None:
    outside = copied.parent / "outside"
    outside.hardlink_to(copied / "metrics.jsonl")
    before, run = outside.read_bytes(), Run.open(copied)
    with pytest.raises(UserError, match=r"metrics\.jsonl is a link or no regular file, so it is not written to"):
        run.log({**run.metrics()[-1], "step": 4})
    run.rewind(3)
    run.log({**run.metrics()[-1], "step": 4})
    assert outside.read_bytes() == before
    assert run.metrics()[-1]["step"] == 4


def test_the_folder_itself_may_be_a_link(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    assert same(attnlab.load(tmp_path / "link"), attnlab.load(copied))


# More than the file holds


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
    "a type": {"options": {"num_heads": 2.0}},
    "a truth value": {"options": {"num_heads": True}},
    "a list": {"options": {"num_heads": [2]}},
    "no such option": {"options": {"colour": 1}},
    "kept heads": {"heads": {"0": list(range(1_000))}},
}


@pytest.mark.parametrize("which", BOMBS)
def test_network_larger_than_its_file_is_refused_before_allocation(
    which: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(copied, **BOMBS[which])
    make = Network.__init__

    def watched(self: Network, *args: Any, **options: Any) -> None:
        assert torch.empty(0).is_meta, "memory was taken"
        make(self, *args, **options)

    monkeypatch.setattr(Network, "__init__", watched)
    with pytest.raises(UserError, match=r"bomb\.safetensors"):
        attnlab.load(path)
    with pytest.raises(UserError, match=r"bomb\.safetensors"):
        predict_file(path, Path("not read"))


def test_large_number_without_memory_cost_is_accepted(copied: Path) -> None:
    options = {"num_heads": 2, "window": 10**12}
    path = bomb(copied, model="slidingwindow", options=options)
    x = torch.ones(1, N, F)
    assert torch.allclose(attnlab.load(path)(x), attnlab.load(copied)(x), atol=1e-5)


def test_hub_folder_is_validated(copied: Path, tmp_path: Path) -> None:
    attnlab.load(copied).save_pretrained(tmp_path / "hub")
    assert same(Network.from_pretrained(tmp_path / "hub"), attnlab.load(copied))
    config = json.loads((tmp_path / "hub/config.json").read_text("utf-8"))
    for described in BOMBS.values():
        (tmp_path / "hub/config.json").write_text(json.dumps({**config, **described}), encoding="utf-8")
        with pytest.raises(UserError, match=r"model\.safetensors"):
            Network.from_pretrained(tmp_path / "hub")
    for text in ("[" * 100_000, '{"layers": NaN}', "{"):
        (tmp_path / "hub/config.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.json is damaged"):
            Network.from_pretrained(tmp_path / "hub")
    (tmp_path / "hub/config.json").unlink()
    os.mkfifo(tmp_path / "hub/config.json")
    with pytest.raises(UserError, match=r"config\.json is not a regular file"):
        Network.from_pretrained(tmp_path / "hub")


def test_archive_is_not_unpacked_to_identify_it(tmp_path: Path) -> None:
    path = tmp_path / "sent.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"state_dict attnlab" + bytes(2**25))
    assert not checkpoint.is_checkpoint(path)


@pytest.mark.parametrize("which", ["expanded", "overlapping", "deflated", "sparse", "bytearray", "meta"])
def test_pth_larger_than_its_file_is_refused(which: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    tensor = torch.ones(1)
    bombs = {
        "expanded": lambda: tensor.expand(10**10),
        "overlapping": lambda: torch.ones(1000).as_strided((1000, 900), (0, 1)),
        "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True),
        "bytearray": lambda: bytearray(3),
        "meta": lambda: torch.empty(10**12, device="meta"),
        "deflated": lambda: tensor,
    }
    torch.save({"state_dict": {"weight": bombs[which]()}, KEY: "{}"}, path)
    if which == "deflated":
        with (
            zipfile.ZipFile(path) as stored,
            zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for entry in stored.infolist():
                out.writestr(entry.filename, stored.read(entry))
        path = tmp_path / "packed.pth"
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
    with pytest.raises(UserError, match=message):
        load_tensors(tmp_path / "bomb.safetensors")


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
def test_memory_use_is_bounded(copied: Path, tmp_path: Path) -> None:
    """300 MB beyond the imports suffice: no gigabytes for a bomb, and no copy of a tensor of 200 MB."""
    torch.save({"state_dict": {"w": torch.ones(1).expand(10**9)}, KEY: "{}"}, tmp_path / "bomb.pth")
    names = [bomb(copied, inputs=["tokens", 10**8]), tmp_path / "bomb.pth", tmp_path / "large.pth"]
    names.append(tmp_path / "large.safetensors")
    ran = subprocess.run([sys.executable, "-c", LIMITED, *map(str, names)], capture_output=True, text=True)
    assert ran.stdout.split() == ["refused", "refused", "saved", "saved"], ran.stderr
