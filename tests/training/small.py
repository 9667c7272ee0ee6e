"""A tiny task, network and run; axes have distinct prime sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks.base import Baseline, Split, TaskData
from attnlab.training import checkpoint, train
from attnlab.training.checkpoint import KEY, load_tensors
from attnlab.training.experiment import Experiment, build
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, defaults
from attnlab.utils.errors import UserError

N, F, CLASSES = 5, 3, 7
TRAIN, VALIDATION, TEST = 37, 11, 13


def task_data(*, padded: bool = True) -> TaskData:
    """The index of the largest feature of the first token; sequences of different lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Split:
        x = torch.randn(count, N, F, generator=generator)
        lengths = torch.randint(1, N + 1, (count,), generator=generator) if padded else None
        return Split(x, x[:, 0].argmax(-1, keepdim=True), lengths)

    return TaskData(
        draw(TRAIN),
        draw(VALIDATION),
        draw(TEST),
        inputs=Inputs("vectors", F),
        outputs=Outputs("classes", CLASSES),
        length=N,
        metric="accuracy",
        baselines=lambda: [Baseline("one class", {"accuracy": 0.25})],
    )


def settings(**changes: Any) -> Settings:
    """Small settings: 23 steps in batches of 8, with dropout, and an evaluation after each step."""
    small = {"embed_dim": 8, "num_heads": 2, "layers": 1, "batch_size": 8, "steps": 23, "dropout": 0.1}
    small["evaluate_every"] = 1
    if "epochs" in changes:
        small.pop("steps")
    return defaults("multihead", "digits").updated({**small, **changes}, "the test")


def experiment(dataset: TaskData | None = None, **changes: Any) -> Experiment:
    """A new network, initialized by the seed."""
    dataset, chosen = dataset or task_data(), settings(**changes)
    torch.manual_seed(chosen.training.seed)
    return Experiment(chosen, dataset, build(chosen, dataset), torch.device("cpu"))


def trainer(path: Path | None = None, dataset: TaskData | None = None, **changes: Any) -> Trainer:
    """A trainer with a run folder at ``path``, resumed if it exists; without ``path`` nothing is written."""
    ready = experiment(dataset, **changes)
    run = None
    if path is not None:
        run = Run.open(path) if path.exists() else train.start(ready, path)
    made = Trainer(ready.network, ready.task_data, ready.settings, run, checkpoint_seconds=0)
    if run is not None:
        made.restore()
    return made


def started(path: Path | None, *, overwrite: bool = False, **changes: Any) -> Run:
    """A new run that has not been trained."""
    return train.start(experiment(**changes), path, overwrite=overwrite)


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stop_at(step: int) -> Callable[[Any], None]:
    """A callback that raises at a step, after which nothing is saved, as in a killed process."""

    def callback(progress: Any) -> None:
        if progress.step >= step:
            raise KilledError

    return callback


class KilledError(Exception):
    """Raised in place of killing the process."""


def same(a: Network | dict[str, Tensor], b: Network | dict[str, Tensor]) -> bool:
    """Whether two networks have bit-identical parameters."""
    one, two = (n if isinstance(n, dict) else n.state_dict() for n in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def last(path: Path) -> dict[str, Tensor]:
    """The parameters of a run after its last step."""
    tensors = load_tensors(path / "state.safetensors")[0]
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    return [without_times(line) for line in Run.open(path).metrics()]


def refused(message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """A call raises a one-line `UserError` that contains ``message``."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record without times."""
    return {key: value for key, value in record.items() if not key.endswith(("second", "seconds"))}


def write_checkpoint(path: Path, tensors: dict[str, Tensor], about: Any) -> None:
    """Write an invalid checkpoint with a valid checksum."""
    if isinstance(about, dict):
        about = {**about, "sha256": checkpoint._checksum(tensors, about)}
    path.unlink(missing_ok=True)
    save_file(tensors, path, {KEY: json.dumps(about)})
