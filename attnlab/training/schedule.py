"""The schedule of a run: its steps, its evaluations and its learning rate.

The schedule depends on the settings and the data, never on the clock, so that a run can be repeated exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.tasks._split import sample
from attnlab.tasks.base import Split, TaskData
from attnlab.training.objective import one_class_per_example
from attnlab.training.settings import Training
from attnlab.utils.errors import UserError

SHARE = 0.1
"""The default fraction of a run's time for evaluation."""
STEP_COST = 3
"""A training step costs about three forward passes of the same examples: one forward, two backward."""
EVALUATIONS = 20
"""Evaluations per run, if they fit."""
MIN_EXAMPLES = 256
"""With fewer validation examples, the selection of the best network would be noise."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, the steps between two evaluations, and the validation examples per evaluation."""

    steps: int
    epoch_steps: int
    evaluate_every: int
    validation_examples: int
    snapshots: frozenset[int] = frozenset()
    """The steps after which the network is kept; 0 is before training."""

    @property
    def evaluations(self) -> int:
        """The number of evaluations; the last step is always followed by one."""
        return math.ceil(self.steps / self.evaluate_every)


def schedule(how: Training, task_data: TaskData) -> Schedule:
    """The schedule of a run.

    By default there are 20 evaluations, or one per epoch if that is more, each on the whole validation split. If that
    costs more than a tenth of the run, each evaluation uses fewer examples (at least 256), and then there are fewer
    evaluations (at least one).
    """
    train, validation = len(task_data.train.x), len(task_data.validation.x)
    epoch_steps = math.ceil(train / how.batch_size)
    steps = how.steps if how.steps is not None else epoch_steps * (how.epochs or 1)
    every = min(how.evaluate_every or max(1, min(epoch_steps, steps // EVALUATIONS)), steps)
    affordable = STEP_COST * steps * min(how.batch_size, train) * SHARE / (1 - SHARE)
    if how.validation_examples is not None:
        examples = min(how.validation_examples, validation)
    else:
        fitting = int(affordable / math.ceil(steps / every))
        examples = min(validation, max(MIN_EXAMPLES, fitting, task_data.outputs.size))
    if how.evaluate_every is None:
        evaluations = max(1, int(affordable / examples))
        every = max(every, math.ceil(steps / evaluations))
    return Schedule(steps, epoch_steps, every, examples, frozenset(snapshot_steps(how.snapshots, steps)))


def snapshot_steps(count: int, steps: int) -> list[int]:
    """``count`` different steps, evenly spaced on a logarithmic scale: 0, 1, ..., ``steps``.

    One is the last step, two are the first and the last. Close to step 1, where a logarithmic scale is finer than
    whole steps, they are consecutive; with fewer steps than ``count``, all are returned.
    """
    if count >= steps + 1:
        return list(range(steps + 1))
    if count < 2:
        return [steps][:count]
    after = [max(i + 1, math.floor(steps ** (i / max(1, count - 2)) + 0.5)) for i in range(count - 2)]
    return [0, *after, steps]


def validation_sample(task_data: TaskData, count: int) -> Split:
    """``count`` validation examples, the same in every evaluation and for every seed, with every class."""
    split = task_data.validation
    if count >= len(split.x):
        return split
    if one_class_per_example(task_data):
        classes = split.y[:, 0].numpy()
        present = len(torch.unique(split.y[:, 0]))
        if count < present:
            raise UserError(
                f"--validation_examples {count} is less than the number of classes ({present}); give {present} or more"
            )
        rows = torch.from_numpy(sample(classes, count, 0))
    else:  # evenly spaced over a text
        rows = evenly_spaced(len(split.x), count)
    return split.take(rows)


def evenly_spaced(total: int, count: int) -> Tensor:
    """``count`` different integers from 0 to ``total`` - 1, in order."""
    return torch.arange(count) * total // count


def lr_at(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate at a step: linear warm-up, then cosine decay to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
