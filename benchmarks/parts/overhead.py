"""What the trainer costs: its steps a second against a bare loop over the same network and data."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attnlab.network import Inputs, Outputs
from attnlab.tasks.base import Split, TaskData
from attnlab.training.experiment import Experiment, build
from attnlab.training.loop import Trainer
from attnlab.training.schedule import lr_at
from attnlab.training.settings import Training, defaults
from attnlab.training.train import start
from benchmarks.pairing import Pace, race
from benchmarks.results import Row, Speed

TARGET = 0.90
BATCH, LENGTH, WIDTH = 32, 16, 64
EPOCHS = 20
"""An evaluation an epoch, as in every run of 20 epochs or more."""
TRAIN, VALIDATION = 1_295, 143
"""As many examples as in digits."""


TITLE = "The trainer against a bare loop"
ABOUT = (
    f"Steps a second over {EPOCHS} epochs of {TRAIN} examples (embed_dim {WIDTH}, {LENGTH} tokens, batch {BATCH}). "
    f"The trainer also makes its run folder, evaluates {VALIDATION} examples an epoch, writes logs and checkpoints; "
    "the bare loop does none of it. The weights of both are compared first. Wall time: to wait for the disk counts."
)


def rows(pace: Pace) -> Iterator[Row]:
    """Trainer over bare loop; both take the same steps and end with the same weights."""
    torch.manual_seed(0)
    x, y = torch.randn(TRAIN, LENGTH, 8), torch.randint(10, (TRAIN, 1))
    held = Split(torch.randn(VALIDATION, LENGTH, 8), torch.randint(10, (VALIDATION, 1)))
    task_data = TaskData(Split(x, y), held, held, Inputs("vectors", 8), Outputs("classes", 10), LENGTH, "accuracy")
    settings = defaults("multihead", "digits")
    settings.training.epochs = EPOCHS
    network = build(settings, task_data)
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(1_000_000))

        def ours() -> nn.Module:
            trained = copy.deepcopy(network)
            run = start(Experiment(settings, task_data, trained, torch.device("cpu")), Path(folder) / str(next(count)))
            Trainer(trained, task_data, settings, run).fit()
            return trained

        bare = _bare(network, task_data, settings.training)
        for a, b in zip(ours().parameters(), bare().parameters(), strict=True):
            torch.testing.assert_close(a, b)
        found, control = race(ours, {"bare loop": bare}, replace(pace, clock=time.perf_counter))
        yield Speed("the trainer", "a bare loop", found["bare loop"], control, TARGET)


def _bare(network: nn.Module, task_data: TaskData, how: Training) -> Callable[[], nn.Module]:
    """The loop that one writes by hand: no checkpoint, no evaluation, no log, no check."""

    def loop() -> nn.Module:
        trained = copy.deepcopy(network)
        x, y, _ = task_data.train
        parameters = list(trained.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": how.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=how.learning_rate, fused=True)
        step, steps = 0, EPOCHS * math.ceil(len(x) / BATCH)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            for rows in order.split(BATCH):
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(step, steps, how.learning_rate, how.warmup)
                loss = F.cross_entropy(trained(x[rows]).flatten(0, 1), y[rows].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, how.grad_clip)
                optimizer.step()
                step += 1
        return trained

    return loop
