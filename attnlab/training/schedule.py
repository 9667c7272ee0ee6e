"""How long a run is, when it is evaluated and on how many examples, and its learning rate at each step.

All of it follows from the settings and the data alone, never from the clock, so that a run can be repeated exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.tasks._split import sample
from attnlab.tasks.base import Split, TaskData
from attnlab.training.settings import Training
from attnlab.utils.errors import UserError

SHARE = 0.1
"""The part of a run that goes to evaluation by default."""
STEP_COST = 3
"""A training step costs about three forward passes of the same examples: one forward, two backward."""
EVALUATIONS = 20
"""Evaluations per run, where they fit."""
FEWEST_EXAMPLES = 256
"""Fewer validation examples than this per evaluation choose by noise."""


@dataclass(frozen=True)
class Schedule:
    """The steps of a run, the steps between two evaluations, and the validation examples that each evaluation reads."""

    steps: int
    epoch_steps: int
    evaluate_every: int
    validation_examples: int

    @property
    def evaluations(self) -> int:
        """How many evaluations there are; the last step is always followed by one."""
        return math.ceil(self.steps / self.evaluate_every)


def schedule(how: Training, task_data: TaskData) -> Schedule:
    """The schedule of a run.

    Without ``evaluate_every`` there are at least 20 evaluations, at most one per epoch; without
    ``validation_examples`` each reads the whole validation split. Where that costs more than a tenth of the run, each
    reads fewer examples, though not fewer than 256, and then there are fewer evaluations, though at least one.
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
        examples = min(validation, max(FEWEST_EXAMPLES, fitting, task_data.outputs.size))
    if how.evaluate_every is None:
        evaluations = max(1, int(affordable / examples))
        every = max(every, math.ceil(steps / evaluations))
    return Schedule(steps, epoch_steps, every, examples)


def validation_sample(task_data: TaskData, count: int) -> Split:
    """``count`` validation examples, the same in every evaluation of every seed, with each class among them.

    Raises:
        UserError: for fewer examples than there are classes.
    """
    split = task_data.validation
    if count >= len(split.x):
        return split
    if task_data.outputs.kind == "classes" and task_data.outputs.slots == 1:
        classes = split.y[:, 0].numpy()
        present = len(torch.unique(split.y[:, 0]))
        if count < present:
            raise UserError(
                f"--validation_examples {count} is less than the number of classes ({present}); give {present} or more"
            )
        rows = torch.from_numpy(sample(classes, count, 0))
    else:  # spread evenly over a text
        rows = evenly_spaced(len(split.x), count)
    return Split(split.x[rows], split.y[rows], None if split.lengths is None else split.lengths[rows])


def evenly_spaced(total: int, count: int) -> Tensor:
    """``count`` different whole numbers from 0 to ``total`` - 1, in order."""
    return torch.arange(count) * total // count


def lr_at(step: int, steps: int, highest: float, warmup: float) -> float:
    """The learning rate at a step: up in a straight line, then down to zero along a cosine."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return highest * (step + 1) / rising
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
