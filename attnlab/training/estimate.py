"""How long a run will take, measured on a copy of the network before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attnlab.network import Network
from attnlab.tasks.base import Split, TaskData
from attnlab.training.hardware import memory_advice
from attnlab.training.loop import Trainer
from attnlab.training.objective import evaluate
from attnlab.training.schedule import schedule
from attnlab.training.settings import Settings

REHEARSAL = 6
"""Training steps that are measured at least."""
REHEARSAL_SECONDS = 0.3
"""More steps are measured until they took this long: a step of a millisecond varies."""
REPORT_SECONDS = 1.0
"""About what the report and its pictures take."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that a run will spend on training, on evaluations while it trains, and on the result at its end."""

    training: float
    evaluation: float
    result: float

    @property
    def total(self) -> float:
        """All three together."""
        return self.training + self.evaluation + self.result


def estimate(network: Network, task_data: TaskData, settings: Settings, *, done: int = 0) -> Estimate:
    """Measure a few training steps and evaluation batches; no weight and no random number is touched.

    Args:
        network: as it will be trained.
        task_data: what on.
        settings: how.
        done: steps that an earlier process has trained already.
    """
    settings = copy.deepcopy(settings)
    settings.hardware.compile = False
    planned = schedule(settings.training, task_data)
    device = next(network.parameters()).device
    on_gpu = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_gpu), memory_advice(settings.training.batch_size):
        rehearsal = Trainer(copy.deepcopy(network), task_data, settings)
        step = _median_seconds(lambda: float(rehearsal.training_step()))
        size = max(settings.training.batch_size, 128)
        batch = Split(*(None if part is None else part[:size] for part in rehearsal.validation))  # type: ignore[arg-type]

        def evaluation() -> None:
            evaluate(rehearsal.network, batch, rehearsal.objective, batch_size=size, autocast=rehearsal.autocast)

        example = _median_seconds(evaluation) / len(batch.x)
    left = 1 - done / planned.steps
    return Estimate(
        step * planned.steps * left,
        example * len(rehearsal.validation.x) * planned.evaluations * left,
        example * len(task_data.test.x) + REPORT_SECONDS,
    )


def _median_seconds(call: Callable[[], object]) -> float:
    """The median time of a call, without the first two, which are slower."""
    times: list[float] = []
    while len(times) < REHEARSAL or sum(times) < REHEARSAL_SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    later = sorted(times[2:])
    return later[len(later) // 2]
