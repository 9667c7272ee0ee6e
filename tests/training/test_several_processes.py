"""Two processes train as one: the same parameters and checkpoints, and one message however a run ends."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from processes import Server
from small import last, lines, same
from torch import Tensor, distributed

from attnlab.network import Outputs
from attnlab.tasks.base import IGNORE, Split, TaskData
from attnlab.training import train
from attnlab.training.distributed import ALONE, LostProcessError, Processes
from attnlab.training.experiment import Experiment, build
from attnlab.training.loop import Trainer
from attnlab.training.objective import evaluate
from attnlab.training.runs import Run
from attnlab.training.settings import defaults

WORLD = 2
TOLERANCE = 1e-12
"""In float64, without biases: that of the keys has no gradient, and AdamW turns a rounding error into a step."""


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_parts_are_disjoint_and_cover_all_rows(size: int, length: int) -> None:
    parts = [list(range(length))[Processes(rank, size).part(length)] for rank in range(size)]
    assert list(itertools.chain(*parts)) == list(range(length))
    assert max(map(len, parts)) == Processes(0, size).longest_part(length) <= min(map(len, parts)) + 1


def test_dropout_differs_between_processes_and_steps() -> None:
    seeds = [Processes(rank, WORLD).dropout_seed(0, step) for rank in range(WORLD) for step in range(3)]
    assert len({*seeds, Processes(0, WORLD).dropout_seed(1, 0)}) == len(seeds) + 1


def test_only_a_failed_connection_is_a_lost_process() -> None:
    closed = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"
    with pytest.raises(LostProcessError), Processes(0, WORLD).connected():
        raise RuntimeError(closed)
    with pytest.raises(RuntimeError, match="shapes"), Processes(0, WORLD).connected():
        raise RuntimeError("the shapes differ")
    with pytest.raises(RuntimeError, match="gloo"), ALONE.connected():
        raise RuntimeError(closed)


# The same parameters


def changed(data: TaskData, change: Callable[[Split], Split], **fields: Any) -> TaskData:
    """The data with every split changed."""
    return replace(data, **{name: change(getattr(data, name)) for name in ("train", "validation", "test")}, **fields)


def tokens() -> TaskData:
    """A class per position, with padding and rows that have one target only."""

    def relabel(split: Split) -> Split:
        assert split.lengths is not None
        y = split.x.argmax(-1).masked_fill(torch.arange(small.N) >= split.lengths[:, None], IGNORE)
        y[::3, 1:] = IGNORE
        return split._replace(y=y)

    return changed(small.task_data(), relabel, outputs=Outputs("tokens", small.CLASSES))


def values() -> TaskData:
    data = small.task_data(padded=False)
    return changed(data, lambda s: s._replace(y=s.x[:, 0, :1]), outputs=Outputs("values", 1), metric="rmse")


CASES: dict[str, tuple[Callable[[], TaskData], dict[str, Any]]] = {
    "classes of unequal weight, selected by F1": (
        lambda: replace(small.task_data(), metric="f1"),
        {"model": "multihead", "class_weight": "balanced"},
    ),
    "some targets, with auxiliary losses": (tokens, {"model": "dsa", "top_k": 2, "layers": 2}),
    "values": (values, {"model": "multihead", "batch_size": 5}),
}


def make(case: str, processes: Processes = ALONE, path: Path | None = None, **changes: Any) -> Trainer:
    """A trainer in float64; with ``path``, the first process has a run, which is restored if it exists.

    A batch of 4 leaves a last batch of one row, in which one of the processes has no row.
    """
    dataset, options = CASES[case]
    made = {"embed_dim": 8, "num_heads": 2, "layers": 1, "batch_size": 4, "steps": 12, "evaluate_every": 3}
    made |= {"snapshots": 3, "precision": "float64", "learning_rate": 0.02, "bias": False, **options, **changes}
    settings = defaults(made.pop("model"), "digits").updated(made, "the test")
    data = changed(dataset(), Split.double)
    torch.manual_seed(settings.training.seed)
    network = build(settings, data).double()
    run = None
    if path is not None and processes.rank == 0:
        ready = Experiment(settings, data, network, torch.device("cpu"))
        run = Run.open(path) if path.exists() else train.start(ready, path)
    trainer = Trainer(network, data, settings, run, checkpoint_seconds=0, processes=processes)
    if path is not None:
        trainer.restore()
    return trainer


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def compare(actual: Trainer, expected: Trainer, what: str) -> None:
    for (name, have), want in zip(actual.network.named_parameters(), expected.network.parameters(), strict=True):
        error = float((whole(have) - want).detach().abs().max())
        assert error < TOLERANCE, f"{what}: {name} differs by {error:.2g}"
    assert actual.best == pytest.approx(expected.best, abs=TOLERANCE), what
    assert actual.best_step == expected.best_step, what


def work() -> None:
    """Compare in one of the processes, which raises what differs."""
    torch.set_num_threads(1)
    processes, folder = Processes.connect(), Path.cwd()
    processes.join(torch.device("cpu"))
    for case in CASES:
        single = make(case)
        start = [parameter.detach().clone() for parameter in single.parameters]
        single.fit()
        moved = [float((a.detach() - b).abs().max()) for a, b in zip(single.parameters, start, strict=True)]
        assert max(moved) > 1e-3, f"{case}: nothing was learned"
        for fsdp in (False, True):
            together = make(case, processes, fsdp=fsdp)
            together.fit()
            compare(together, single, f"{case}, {'FSDP2' if fsdp else 'DDP'}")
            assert all(hasattr(p, "full_tensor") == fsdp for p in together.parameters)
            assert torch.initial_seed() == processes.dropout_seed(0, together.step - 1)
            seven = single.validation.take(slice(7))  # two batches of 3 in one process, one in the other
            _, metric = evaluate(together.network, seven, single.objective, batch_size=3, processes=processes)
            expected_metric = evaluate(single.network, seven, single.objective, batch_size=3)[1]
            assert metric == pytest.approx(expected_metric, abs=TOLERANCE)

    # One checkpoint moves from one process to two with FSDP2, to two with DDP, and back to one.
    case, path = next(iter(CASES)), folder / "run"
    expected = make(case)
    expected.fit()
    parts = [(ALONE, False), (processes, True), (processes, False), (ALONE, False)]
    for number, (which, fsdp) in enumerate(parts):
        if which is ALONE and processes.rank:
            processes.exchange([0])
            continue
        trainer = make(case, which, path, fsdp=fsdp)
        assert 3 * number <= trainer.step < 3 * (number + 1), "it starts from the last checkpoint"
        if number < len(parts) - 1:
            with pytest.raises(small.KilledError):
                trainer.fit(small.stop_at(3 * (number + 2)))
        else:
            trainer.fit()
            compare(trainer, expected, "moved between numbers of processes")
        if which is ALONE:
            processes.exchange([0])
    if processes.rank == 0:
        saved = Run.open(path).load_model().state_dict()
        assert saved.keys() == expected.network.state_dict().keys()
        assert Run.open(path).snapshots() == [0, 1, 12], "whole networks, also of sharded ones"
        first, end = (Run.open(path).load_snapshot(step) for step in (1, 12))
        assert not same(first.state_dict(), end.state_dict())
        compare_networks = zip(end.parameters(), expected.network.parameters(), strict=True)
        assert all(torch.allclose(one, two, atol=TOLERANCE, rtol=0) for one, two in compare_networks)


# Running

STEPS = 60
TRAIN = [
    *("train", "--model", "multihead", "--task", "digits", "--embed_dim", "8", "--layers", "1", "--dropout", "0.1"),
    *("--steps", str(STEPS), "--learning_rate", "0.01", "--checkpoint_seconds", "0", "--quiet", "--run_dir", "run"),
]
RESUME = ["train", "--quiet", "--checkpoint_seconds", "0", "--resume", "run"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def run_together(
    server: Server, arguments: list[str], *folders: Path, orders: dict[int, dict[str, Any]] | None = None
) -> tuple[list[int], list[str], list[str]]:
    """Run two processes as torchrun does, and return their exit codes, outputs and errors.

    ``folders`` are their working directories, the same by default; ``orders`` are for `Server.start`, by rank.
    """
    folders = folders if len(folders) == WORLD else folders * WORLD
    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    variables["WORLD_SIZE"] = str(WORLD)
    started = []
    for rank, folder in enumerate(folders):
        environment = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        order = (orders or {}).get(rank, {})
        started.append(server.start(arguments, folder, environment=environment, log=str(rank), **order))
    codes = [server.wait(process) for process in started]
    printed = ([(f / f"{r}{name}").read_text("utf-8") for r, f in enumerate(folders)] for name in ("stdout", "stderr"))
    return codes, *printed


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_train_as_one(server: Server, tmp_path: Path) -> None:
    """With uneven batches, targets, weights and lengths, for DDP and FSDP2; checkpoints move between all of them."""
    codes, _, errors = run_together(server, ["test_several_processes", "work"], tmp_path)
    assert codes == [0, 0], "\n".join(errors)


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, outputs, errors = run_together(server, TRAIN, folder)
    assert codes == [0, 0], errors
    assert "multihead" in outputs[0]
    assert outputs[1:] + errors == ["", "", ""], "only the first process prints"
    return folder / "run"


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_says_how_to_resume_after_a_kill(
    killed: int, server: Server, undisturbed: Path, tmp_path: Path
) -> None:
    codes, outputs, errors = run_together(server, TRAIN, tmp_path, orders={killed: {"signal_at": (31, signal.SIGKILL)}})
    assert (codes[killed], codes[1 - killed]) == (-signal.SIGKILL, 2)
    assert [*outputs, errors[killed]] == ["", "", ""]
    message = r"error: another process of this run ended .*; resume with: .* --nproc_per_node 2 .* train --resume run\n"
    assert re.fullmatch(message, errors[1 - killed])
    codes, _, errors = run_together(server, RESUME, tmp_path)
    assert codes == [0, 0], errors
    assert same(last(tmp_path / "run"), last(undisturbed))
    assert lines(tmp_path / "run") == lines(undisturbed)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(
    server: Server, undisturbed: Path, tmp_path: Path
) -> None:
    codes, outputs, errors = run_together(server, TRAIN, tmp_path, orders={1: {"signal_at": (31, signal.SIGINT)}})
    assert codes == [130, 130]
    stopped = re.fullmatch(rf"stopped at step (\d+) of {STEPS}; resume with: .* --resume run\n", errors[0])
    assert stopped is not None, errors
    assert 31 <= int(stopped[1]) < STEPS
    assert [*outputs, errors[1]] == ["", "", ""]
    codes, _, errors = run_together(server, RESUME, tmp_path)
    assert codes == [0, 0], errors
    assert same(last(tmp_path / "run"), last(undisturbed))


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embed_dimension", "8"], "unknown option --embed_dimension"),
        (["--data", "x.csv", "--target", "y"], "--data x.csv does not exist"),
        (["--interactive"], "--interactive asks in one process"),
        (["--device", "cuda:0"], "--device cuda:0 is for one process"),
        (["--fsdp", "--precision", "float16"], "--fsdp does not support float16"),
    ],
)
def test_an_error_is_printed_once_and_ends_both(flags: list[str], message: str, server: Server, tmp_path: Path) -> None:
    codes, outputs, errors = run_together(server, ["train", *flags], tmp_path)
    assert codes == [2, 2]
    assert outputs == ["", ""]
    assert re.fullmatch(rf"error: {re.escape(message)}.*\n", "".join(errors)), errors


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_an_error_of_one_process_ends_both(server: Server, tmp_path: Path) -> None:
    """A file that is missing on the second machine, and one that differs there."""
    folders = [tmp_path / "first", tmp_path / "second"]
    table = "a,b\n" + "".join(f"{i},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    for folder in folders:
        folder.mkdir()
    (folders[0] / "x.csv").write_text(table, "utf-8")
    options = ["train", "--data", "x.csv", "--target", "b", "--steps", "2", "--quiet", "--run_dir", "run"]
    codes, _, errors = run_together(server, options, *folders)
    assert codes == [2, 2]
    assert re.fullmatch(r"error: .*x\.csv.*\n", errors[1]), errors
    assert errors[0] == ""
    (folders[1] / "x.csv").write_text(table.replace("39,yes", "39,no"), "utf-8")
    codes, _, errors = run_together(server, [*options, "--overwrite"], *folders)
    assert codes == [2, 2]
    assert re.fullmatch("error: process 1 has other data than process 0: .*\n", errors[1]), errors
    assert errors[0] == ""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_torchrun(tmp_path: Path) -> None:
    """The command of the documentation, with FSDP2 in place of DDP."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(WORLD)]
    options = [*TRAIN[:-2], "--steps", "3", "--fsdp", "--json", "--run_dir", "run"]
    done = subprocess.run([*command, "-m", "attnlab", *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "only the first process prints"
    assert same(Run.open(tmp_path / "run").load_model().state_dict(), last(tmp_path / "run"))
