"""Estimated time of a run, measured on a copy of the network before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnlab.network import Network
from attnlab.tasks.base import TaskData
from attnlab.training.hardware import memory_advice
from attnlab.training.loop import Trainer
from attnlab.training.objective import evaluate
from attnlab.training.schedule import schedule
from attnlab.training.settings import Settings

MIN_CALLS = 6
"""Calls that are timed at least."""
MIN_SECONDS = 0.3
"""Calls are timed for at least this long, because short ones vary."""
REPORT_SECONDS = 1.0
"""Approximate time of the report and its figures."""


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of training, of the evaluations during training, and of the result at the end."""

    training: float
    evaluation: float
    result: float

    @property
    def total(self) -> float:
        """The sum of the three."""
        return self.training + self.evaluation + self.result


def estimate(
    network: Network, task_data: TaskData, settings: Settings, *, done: int = 0, processes: int = 1
) -> Estimate:
    """Time a few training steps and evaluation batches of a run of which ``done`` steps were trained earlier.

    The network and the random state are not changed. With several ``processes``, each takes its part of these times;
    communication is not included.
    """
    settings = copy.deepcopy(settings)
    settings.hardware.compile = False
    planned = schedule(settings.training, task_data)
    device = next(network.parameters()).device
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), memory_advice(settings.training.batch_size):
        trainer = Trainer(copy.deepcopy(network), task_data, settings)
        step = _median_seconds(lambda: float(trainer.training_step()))
        size = max(settings.training.batch_size, 128)
        batch = trainer.validation.take(slice(size))

        def evaluation() -> None:
            evaluate(trainer.network, batch, trainer.objective, batch_size=size, autocast=trainer.autocast)

        example = _median_seconds(evaluation) / len(batch.x)
        longer = task_data.test.x.shape[1] / batch.x.shape[1]
    left = (1 - done / planned.steps) / processes
    return Estimate(
        step * planned.steps * left,
        example * len(trainer.validation.x) * planned.evaluations * left,
        example * longer * len(task_data.test.x) + REPORT_SECONDS,
    )


def _median_seconds(call: Callable[[], object]) -> float:
    """The median time of a call, without the first two, which are slower."""
    times: list[float] = []
    while len(times) < MIN_CALLS or sum(times) < MIN_SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    later = sorted(times[2:])
    return later[len(later) // 2]
