"""The overhead of the trainer, compared with a plain training loop over the same network and data."""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attnlab.bench.timing import TimingConfig
from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import Split, TaskData
from attnlab.training.decay import decayed
from attnlab.training.experiment import Experiment, build
from attnlab.training.loop import Trainer
from attnlab.training.schedule import lr_at
from attnlab.training.settings import Training, defaults
from attnlab.training.train import start
from benchmarks.results import Row, speed_row

TARGET = 0.90
BATCH, LENGTH, WIDTH = 32, 16, 64
EPOCHS = 20
"""Runs of 20 epochs or more evaluate once per epoch."""
TRAIN, VALIDATION = 1_295, 143
"""The numbers of examples in digits."""

TITLE = "The trainer and a plain training loop"
ABOUT = (
    f"Steps per second over {EPOCHS} epochs of {TRAIN} examples (embed_dim {WIDTH}, {LENGTH} tokens, batch {BATCH}). "
    f"The trainer also creates its run folder, evaluates {VALIDATION} examples per epoch and writes logs and "
    "checkpoints; the plain loop does not. The trained parameters are compared first. Wall time, because waiting for "
    "the disk counts."
)


def rows(timing: TimingConfig) -> Iterator[Row]:
    """The time of the plain loop over that of the trainer, for the same steps."""
    torch.manual_seed(0)
    x, y = torch.randn(TRAIN, LENGTH, 8), torch.randint(10, (TRAIN, 1))
    evaluation = Split(torch.randn(VALIDATION, LENGTH, 8), torch.randint(10, (VALIDATION, 1)))
    sizes = Inputs("vectors", 8), Outputs("classes", 10), LENGTH
    task_data = TaskData(Split(x, y), evaluation, evaluation, *sizes, "accuracy")
    settings = defaults("multihead", "digits")
    settings.training.epochs = EPOCHS
    network = build(settings, task_data)
    with tempfile.TemporaryDirectory() as folder:
        count = itertools.count()

        def ours() -> nn.Module:
            trained = copy.deepcopy(network)
            run = start(Experiment(settings, task_data, trained, torch.device("cpu")), Path(folder) / str(next(count)))
            Trainer(trained, task_data, settings, run).fit()
            return trained

        theirs = _plain_loop(network, task_data, settings.training)
        for a, b in zip(ours().parameters(), theirs().parameters(), strict=True):
            torch.testing.assert_close(a, b)
        wall_time = replace(timing, clock=time.perf_counter)
        yield speed_row(wall_time, "trainer", "plain loop", ours, theirs, TARGET)


def _plain_loop(network: nn.Module, task_data: TaskData, training: Training) -> Callable[[], nn.Module]:
    """A training loop without checkpoints, evaluation, logs and checks."""

    def loop() -> nn.Module:
        trained = copy.deepcopy(network)
        x, y, _ = task_data.train
        matrices, others = decayed(trained)
        groups = [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
        step, steps = 0, EPOCHS * math.ceil(len(x) / BATCH)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            for rows in order.split(BATCH):
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(step, steps, training.learning_rate, training.warmup)
                loss = F.cross_entropy(trained(x[rows]).flatten(0, 1), y[rows].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained.parameters(), training.grad_clip)
                optimizer.step()
                step += 1
        return trained

    return loop
