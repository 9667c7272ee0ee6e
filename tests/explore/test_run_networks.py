"""The networks of run folders: their inputs, changed options, snapshots, and untrusted folders."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from attnlab.explore.catalog import catalog
from attnlab.explore.networks import make_subject
from attnlab.explore.setup import Digit, RunNetwork, Setup, TaskExample, Text, Upload
from attnlab.explore.shelf import Shelf, run_folders
from attnlab.explore.subject import Subject
from attnlab.tasks.base import Split
from attnlab.training import train
from attnlab.training.experiment import load_task_data, prepare
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run
from attnlab.training.settings import defaults
from attnlab.utils.errors import UserError

pytestmark = pytest.mark.slow


def trained(path: Path, task: str, model: str = "multihead", **options: Any) -> Path:
    small = {"embed_dim": 12, "layers": 2, "steps": 4, "snapshots": 3, **options}
    if model == "multihead":
        small.setdefault("num_heads", 3)
    ready = prepare(defaults(model, task).updated(small, "the test"))
    Trainer(ready.network, ready.task_data, ready.settings, train.start(ready, path)).fit()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were trained for four steps, read-only."""
    path = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    (path / "data").mkdir()
    (path / "data/text.txt").write_text("".join(f"line {i} of a text\n" for i in range(300)), encoding="utf-8")
    np.savez(path / "data/x.npz", x=rng.normal(5, 3, size=(61, 7, 5)), y=rng.integers(0, 2, 61))
    days = [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(61)]
    frame = {
        "age": rng.integers(10, 90, 61), "city": rng.choice(["Rome", "Oslo", "Bern"], 61), "day": days,
        "note": [f"note {i} is long enough to be a text" + i % 5 * "!" for i in range(61)],
        "y": rng.choice(["no", "yes"], 61),
    }  # fmt: skip
    pl.DataFrame(frame).write_csv(path / "data/table.csv")
    trained(path / "digits", "digits")
    trained(path / "recall", "recall", seq_length=16)
    trained(path / "text", "text", data=str(path / "data/text.txt"), seq_length=11)
    trained(path / "arrays", "arrays", data=str(path / "data/x.npz"), precision="float64")
    trained(path / "table", "table", data=str(path / "data/table.csv"), target="y")
    trained(path / "latent", "recall", "latent", seq_length=16, num_heads=3)
    return path


@pytest.fixture(scope="module")
def shelf(folder: Path) -> Shelf:
    return Shelf(run_folders(folder))


def subject(shelf: Shelf, run: str, given: Any = None, **options: Any) -> Subject:
    source = RunNetwork(run=run, **options)
    return make_subject(Setup(source=source, input=TaskExample() if given is None else given), shelf)


def refused(message: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def validation(folder: Path, run: str) -> Split:
    return load_task_data(Run.open(folder / run).settings).validation


@pytest.mark.parametrize("run", ["digits", "recall", "text", "arrays", "table", "latent"])
def test_the_output_is_that_of_the_run(run: str, folder: Path, shelf: Shelf) -> None:
    made, data = subject(shelf, run, TaskExample(index=2)), validation(folder, run)
    network = Run.open(folder / run).load_model()
    lengths = None if data.lengths is None else data.lengths[2:3]
    x = data.x[2:3].to(next(network.parameters()).dtype) if data.x.is_floating_point() else data.x[2:3]
    with torch.no_grad():
        expected = network(x, lengths)[0]
    N = x.shape[1] if lengths is None else int(lengths)
    assert len(made.tokens) == N
    assert run != "table" or x.shape[1] > N, "it has padding"
    expected = expected[:N] if network.outputs.kind == "tokens" else expected.flatten()
    assert torch.allclose(made.run(), expected, atol=1e-6)


def test_names_of_tokens_and_classes(folder: Path, shelf: Shelf) -> None:
    assert subject(shelf, "table").classes == ("no", "yes")
    assert subject(shelf, "digits").classes == tuple("0123456789")
    assert subject(shelf, "text", Text(text="Ab\né")).tokens == ("A", "b", "\\x0a", "\\xc3", "\\xa9")
    assert subject(shelf, "recall").classes[65] == "v1"
    rows = pl.read_csv(folder / "data/table.csv")
    tokens = subject(shelf, "table", TaskExample(index=1)).tokens
    age, city = (next(token for token in tokens if token.startswith(name)) for name in ("age=", "city="))
    chosen = rows.filter((pl.col("age") == float(age.removeprefix("age="))) & (pl.col("city") == city[5:]))
    notes = ["".join(t for t in tokens if "=" not in t)]
    assert [note in chosen["note"].to_list() for note in notes] == [True], "a row of the file, with its text"
    assert any(token.startswith("day (days)=") for token in tokens)


def test_other_inputs(folder: Path, shelf: Shelf) -> None:
    digit = subject(shelf, "digits", Digit(index=7, patch="row"))
    assert len(digit.tokens) == 8
    assert digit.image is not None
    assert subject(shelf, "text", Text(text="abc")).run().shape == (3, 256)
    file = io.BytesIO()
    x = np.load(folder / "data/x.npz")["x"]
    np.savez(file, x=x.astype(np.float32))
    key = shelf.upload("more.npz", file.getvalue()).key
    made = subject(shelf, "arrays", Upload(key=key, row=4))
    encoding = Run.open(folder / "arrays").config["encoding"]
    standard = (x[4] - np.array(encoding["shift"])) / np.array(encoding["scale"])
    network = Run.open(folder / "arrays").load_model()
    with torch.no_grad():
        expected = network(torch.from_numpy(standard)[None])[0, 0]
    assert torch.allclose(made.run(), expected, atol=1e-5), "standardized as in training"
    refused(
        "x in more.npz has shape (1, 7, 5); expected (batch, at most 8, 8)", subject, shelf, "digits", Upload(key=key)
    )


@pytest.mark.parametrize(
    ("run", "given", "message"),
    [
        ("digits", Text(), "digits was trained on digits; it takes the input task or upload or digit, not text"),
        ("table", Text(), "table was trained on table; it takes the input task, not text"),
        ("recall", Digit(), "recall was trained on recall; it takes the input task or upload, not digit"),
        ("digits", Digit(), "are rows of pixels, not 2x2 patches; choose row"),
        ("recall", TaskExample(task="copy"), "recall was trained on recall; leave the task out, or choose recall"),
        ("recall", TaskExample(seed=3), "the examples are the validation data of"),
        ("recall", TaskExample(index=9_999), "there are 1,600 validation examples"),
        ("text", Text(text="a" * 12), "the input has 12 tokens; the limit is 11, the positions that the network has"),
        ("nothing", TaskExample(), "unknown run 'nothing'"),
    ],
)
def test_inputs_that_do_not_fit(run: str, given: Any, message: str, shelf: Shelf) -> None:
    refused(message, subject, shelf, run, given)


# Changed networks


def test_options_that_keep_the_parameters(shelf: Shelf) -> None:
    usual, other = subject(shelf, "recall"), subject(shelf, "recall", options={"num_heads": 2})
    assert [layer.num_heads for layer in (*usual.layers, *other.layers)] == [3, 3, 2, 2]
    for one, two in zip(usual.layers, other.layers, strict=True):
        assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert (usual.run() - other.run()).abs().max() > 1e-4
    assert "shown with other options than in training: num_heads" in other.notes
    same = subject(shelf, "recall", options={"num_heads": 3})
    assert torch.equal(same.run(), usual.run())


def test_options_that_change_the_parameters(shelf: Shelf) -> None:
    def with_options(message: str, run: str = "recall", **options: Any) -> None:
        refused(message, subject, shelf, run, options=options)

    with_options("bias changes the parameters of", bias=False)
    with_options("bias changes the parameters of", num_heads=2, bias=False)
    with_options("num_heads changes the parameters of", "latent", num_heads=2, head_dim=4, kv_latent_dim=None)
    with_options("multihead: embed_dim (12) must be divisible by num_heads (5)", num_heads=5)
    with_options("the network has an option 'nope', which multihead does not have", nope=1)


def test_causal(shelf: Shelf) -> None:
    usual, other = subject(shelf, "recall"), subject(shelf, "recall", causal=False)
    assert [layer.causal for layer in (*usual.layers, *other.layers)] == [True, True, False, False]
    assert (usual.run() - other.run()).abs().max() > 1e-4
    assert subject(shelf, "recall", causal=True).layers[0] is usual.layers[0]


def test_snapshots(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "recall", tmp_path / "recall"))
    shelf = Shelf([path])
    for file in (path / "snapshots").iterdir():
        os.utime(file, (0, 0))  # written at the same time
    assert [entry.steps for entry in catalog(shelf).runs] == [[0, 1, 4]]
    first, end = subject(shelf, "recall", step=0), subject(shelf, "recall", step=4)
    network = Run.open(folder / "recall").load_snapshot(4)
    with torch.no_grad():
        assert torch.allclose(end.run(), network(validation(folder, "recall").x[:1])[0], atol=1e-6)
    assert (first.run() - end.run()).abs().max() > 1e-4
    assert any("step 4" in note for note in end.notes)
    refused("has no snapshot of step 3; there are those of 0, 1, 4", subject, shelf, "recall", step=3)


# The shelf


def test_a_run_in_training_is_read_again(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "recall", tmp_path / "recall"))
    shelf = Shelf([path])
    before = subject(shelf, "recall")
    assert subject(shelf, "recall").layers[0] is before.layers[0], "kept"
    run = Run.open(path)
    network = run.load_model()
    with torch.no_grad():
        network.readout.weight.zero_()
    run.save_model(network, {"step": 5, "validation": 0.5})
    assert (subject(shelf, "recall").run() - before.run()).abs().max() > 1e-4


def test_names_of_runs(folder: Path, tmp_path: Path) -> None:
    assert list(Shelf(run_folders(folder)).runs) == ["arrays", "digits", "latent", "recall", "table", "text"]
    assert Shelf(run_folders(tmp_path / "none")).runs == {}
    again = Path(shutil.copytree(folder / "recall", tmp_path / "recall"))
    assert list(Shelf([again, folder / "recall", again]).runs) == [str(again), str(folder / "recall")]
    assert list(Shelf([Path("recall"), folder / "text"]).runs) == ["recall", "text"]


def test_catalog_of_runs(folder: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(folder / "recall", tmp_path / "damaged"))
    config = json.loads((damaged / "config.json").read_text("utf-8"))
    (damaged / "config.json").write_text(json.dumps({**config, "metric": "f1"}), encoding="utf-8")
    entries = {entry.name: entry for entry in catalog(Shelf([*folder.iterdir(), damaged])).runs}
    assert entries["digits"].model == "multihead"
    assert (entries["digits"].task, entries["digits"].inputs) == ("digits", "vectors")
    assert entries["digits"].accepts == ["task", "upload", "digit"]
    assert (entries["table"].inputs, entries["table"].accepts) == ("cells", ["task"])
    assert entries["text"].accepts == ["task", "text"]
    assert "damaged/config.json was altered" in entries["damaged"].problem
    assert "is no run folder" in entries["data"].problem
    assert all(not entries[name].problem for name in ("digits", "table", "text"))


# Received folders


@pytest.mark.parametrize("name", ["model.safetensors", "snapshots/step-00000001.safetensors"])
@pytest.mark.parametrize("wrong", ["altered", "link", "missing", "of another run"])
def test_damaged_networks_are_refused(wrong: str, name: str, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "recall", tmp_path / "recall"))
    file, content = path / name, (path / name).read_bytes()
    file.unlink()
    if wrong == "altered":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif wrong == "link":
        file.symlink_to(folder / "recall" / name)
    elif wrong == "of another run":
        shutil.copy(folder / "latent" / name, file)
    step = 1 if name.startswith("snapshots") else None
    message = {"altered": "was altered", "link": "link", "missing": "", "of another run": "another run"}[wrong]
    refused(message, subject, Shelf([path]), "recall", step=step)


def test_data_of_the_run_must_be_the_same(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "text", tmp_path / "text"))
    run, other = Run.open(path), tmp_path / "secret.txt"
    other.write_text("the user's own\n" * 99, encoding="utf-8")
    run.replace_config({"settings": {**run.config["settings"], "data": str(other)}})
    refused("was altered since", subject, Shelf([path]), "text")
    other.unlink()
    refused("no longer exists", subject, Shelf([path]), "text")
    assert subject(Shelf([path]), "text", Text(text="abc")).run().shape == (3, 256), "a text needs no data"


def test_encodings_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "arrays", tmp_path / "arrays"))
    file = io.BytesIO()
    np.savez(file, x=np.zeros((2, 7, 5), np.float32))
    run = Run.open(path)
    network = run.load_model()
    run.replace_config({"encoding": {**run.config["encoding"], "shift": "x"}})
    run.save_model(network, {"step": 4, "validation": 0.5})
    shelf = Shelf([path])
    key = shelf.upload("a.npz", file.getvalue()).key
    refused("has an encoding that does not match its task or the data", subject, shelf, "arrays", Upload(key=key))
