"""What the trainer costs: its steps a second against a bare loop over the same network and data."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from attnlab.network import Inputs, Outputs
from attnlab.task import Problem, Split
from attnlab.training.loop import Trainer
from attnlab.training.settings import defaults
from attnlab.training.train import Prepared, build, start
from benchmarks.pairing import Ratio, speed_ratio

TARGET = 0.90
STEPS = 200
BATCH, LENGTH, WIDTH = 32, 16, 64


def ratio() -> tuple[Ratio, Ratio]:
    """Trainer over bare loop, and the control; both take the same steps and end with the same weights."""
    torch.manual_seed(0)
    x, y = torch.randn(STEPS * BATCH, LENGTH, 8), torch.randint(10, (STEPS * BATCH, 1))
    held = Split(x[:256], y[:256])
    problem = Problem(Split(x, y), held, held, Inputs("vectors", 8), Outputs("classes", 10), LENGTH, "accuracy")
    settings = defaults("multihead", "digits")
    settings.training.epochs, settings.training.steps = None, STEPS
    network = build(settings, problem)
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(1_000_000))

        def ours() -> nn.Module:
            trained = copy.deepcopy(network)
            run = start(Prepared(settings, problem, trained, torch.device("cpu")), Path(folder) / str(next(count)))
            Trainer(trained, problem, settings, run).fit()
            return trained

        bare = _bare(network, problem)
        for a, b in zip(ours().parameters(), bare().parameters(), strict=True):
            torch.testing.assert_close(a, b)
        return speed_ratio(ours, bare, pairs=20), speed_ratio(bare, bare, pairs=20)


def _bare(network: nn.Module, problem: Problem) -> Callable[[], nn.Module]:
    """The loop that one writes by hand: no checkpoint, no evaluation, no log, no check."""

    def loop() -> nn.Module:
        from attnlab.training.loop import rate_at

        trained = copy.deepcopy(network)
        x, y, _ = problem.train
        parameters = list(trained.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        for step in range(STEPS):
            rows = order[step * BATCH : (step + 1) * BATCH]
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, STEPS, 1e-3, 0.05)
            loss = F.cross_entropy(trained(x[rows]).flatten(0, 1), y[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return trained

    return loop
