"""A problem, a network and a run so small that training them takes no time; distinct primes where axes could swap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnlab.network import Inputs, Network, Outputs
from attnlab.tasks.base import Baseline, Split, TaskData
from attnlab.training import train
from attnlab.training.loop import Trainer
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, defaults

N, F, CLASSES = 5, 3, 7
TRAIN, VALIDATION, TEST = 37, 11, 13


def task_data(*, padded: bool = True) -> TaskData:
    """Which feature of the first token is largest? Sequences are of different lengths."""
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


def settings(**said: Any) -> Settings:
    """Small settings: 23 steps, in batches of 8, with dropout, an evaluation after each."""
    small = {"embed_dim": 8, "num_heads": 2, "layers": 1, "batch_size": 8, "steps": 23, "dropout": 0.1}
    small["evaluate_every"] = 1
    if "epochs" in said:
        small.pop("steps")
    return defaults("multihead", "digits").updated({**small, **said}, "the test")


def experiment(asked: TaskData | None = None, **said: Any) -> train.Experiment:
    """A new network for a problem, first weights by the seed."""
    asked, chosen = asked or task_data(), settings(**said)
    torch.manual_seed(chosen.training.seed)
    return train.Experiment(chosen, asked, train.build(chosen, asked), torch.device("cpu"))


def trainer(path: Path | None = None, asked: TaskData | None = None, **said: Any) -> Trainer:
    """A trainer with its run's folder at ``path``, which it takes up where there is one; without it nothing is kept."""
    ready = experiment(asked, **said)
    run = None
    if path is not None:
        run = Run.open(path) if path.exists() else train.start(ready, path)
    made = Trainer(ready.network, ready.task_data, ready.settings, run, checkpoint_seconds=0)
    if run is not None:
        made.restore()
    return made


def stop_at(step: int) -> Callable[[Any], None]:
    """A watcher that dies at a step, as a process that is killed does: nothing after it is saved."""

    def callback(seen: Any) -> None:
        if seen.step >= step:
            raise KilledError

    return callback


class KilledError(Exception):
    """The process is gone."""


def same(a: Network | dict[str, Tensor], b: Network | dict[str, Tensor]) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    one, two = (n if isinstance(n, dict) else n.state_dict() for n in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [without_times(line) for line in lines]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock."""
    return {key: value for key, value in record.items() if not key.endswith(("second", "seconds"))}


def replace_baselines(baselines: Callable[[], list[Baseline]]) -> TaskData:
    """The same problem with other baselines."""
    return replace(task_data(), baselines=baselines)
