"""What is held equal in a comparison: parameters, training time, or training operations.

Each function takes the cases of one point, of which the first is the one that the others are matched to, and returns
the changed cases with one line that says what was changed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from attnlab.bench.timing import TimingConfig, median_seconds
from attnlab.comparison.plan import Case
from attnlab.tasks.base import TaskData
from attnlab.training.experiment import build
from attnlab.training.loop import Trainer
from attnlab.training.schedule import schedule
from attnlab.training.settings import Settings
from attnlab.utils.errors import UserError

Budget = Literal["params", "time", "flops", "none"]

TOLERANCE = 0.02
"""The largest relative difference of the parameters; a larger one is reported."""
WIDEST_MLP = 16
"""The widest MLP that makes up for a small attention layer, in multiples of the embedding width."""
TIMING = TimingConfig(min_sample=0.05, budget=2.0, min_rounds=5, max_rounds=15)


def match_parameters(cases: Sequence[Case], task_data: TaskData) -> list[Case]:
    """The cases with as many parameters as the first, to within `TOLERANCE` if they can be reached.

    The width of the MLPs is changed; where the attention layers alone are too large, or there is no MLP, the embedding
    width.
    """
    target = count_parameters(cases[0].settings, task_data)
    return [cases[0], *(replace(case, settings=_matched(case.settings, target, task_data)) for case in cases[1:])]


def match_steps(cases: Sequence[Case], task_data: TaskData, cost: Mapping[str, float]) -> list[Case]:
    """The cases with the training steps that cost as much as those of the first; ``cost`` per step by label."""
    first = cases[0]
    total = schedule(first.settings.training, task_data).steps * cost[first.label]
    return [
        replace(case, settings=case.settings.updated({"steps": max(1, round(total / cost[case.label]))}, "--budget"))
        for case in cases
    ]


def count_parameters(settings: Settings, task_data: TaskData) -> int:
    """The number of parameters of the network for these settings; UserError if it cannot be built."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(settings, task_data).parameters())


def step_seconds(cases: Sequence[Case], task_data: TaskData) -> dict[str, float]:
    """The median seconds of a training step of each case by label, measured in turn on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainers = {case.label: _trainer(case, task_data) for case in cases}
        work: dict[str, Callable[[], Any]] = {name: t.training_step for name, t in trainers.items()}
        return median_seconds(work, TIMING)
    finally:
        torch.set_num_threads(threads)


def step_flops(cases: Sequence[Case], task_data: TaskData) -> dict[str, float]:
    """The operations of the matrix products in a training step of each case by label.

    A product counts two operations per multiplication. Softmax, normalization and other element-wise work is not
    counted, and a causal product counts in full.
    """
    return {case.label: _flops(_trainer(case, task_data).training_step) for case in cases}


def _flops(step: Callable[[], Tensor]) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused CPU kernels are not counted
        step()
    return float(counter.get_total_flops())


def _trainer(case: Case, task_data: TaskData) -> Trainer:
    with torch.random.fork_rng(devices=[]):
        return Trainer(build(case.settings, task_data), task_data, copy.deepcopy(case.settings))


def _matched(settings: Settings, target: int, task_data: TaskData) -> Settings:
    """The settings whose network has the number of parameters that is nearest to the target."""

    def count(**values: Any) -> float:
        try:
            return count_parameters(settings.updated(values, "--budget"), task_data)
        except UserError:  # for example a width that the heads do not divide
            return math.nan

    width = settings.model.embed_dim
    if not settings.model.mlp:
        sizes = {w: count(embed_dim=w) for w in _widths(settings)}
        return settings.updated({"embed_dim": _nearest(sizes, target)}, "--budget")
    if hidden := _mlp_width(count, width, target):
        return settings.updated({"mlp_width": hidden}, "--budget")
    sizes = {w: count(embed_dim=w, mlp_width=4 * w) for w in _widths(settings)}
    width = _nearest(sizes, target)
    hidden = _mlp_width(count, width, target) or 4 * width
    return settings.updated({"embed_dim": width, "mlp_width": hidden}, "--budget")


def _mlp_width(count: Callable[..., float], width: int, target: int) -> int:
    """The MLP width that meets the target at an embedding width; 0 if none does that is neither tiny nor huge."""
    one, two = count(embed_dim=width, mlp_width=1), count(embed_dim=width, mlp_width=2)
    if math.isnan(one):
        return 0
    hidden = 1 + round((target - one) / (two - one))
    return hidden if width <= hidden <= WIDEST_MLP * width else 0


def _widths(settings: Settings) -> range:
    """Embedding widths from a quarter to four times the width, in steps that the heads divide."""
    width, heads = settings.model.embed_dim, settings.model.options.get("num_heads")
    step = 2 * heads if isinstance(heads, int) else max(1, min(8, width // 4))
    return range(max(step, width // 4 // step * step), 4 * width + 1, step)


def _nearest(sizes: Mapping[int, float], target: int) -> int:
    known = {width: size for width, size in sizes.items() if not math.isnan(size)}
    if not known:
        raise UserError("no embedding width gives this mechanism as many parameters as the first; use --budget none")
    return min(known, key=lambda width: abs(known[width] / target - 1))


def deviation(case: Case, first: Case, task_data: TaskData) -> float:
    """The relative difference of the parameters of a case from those of the first."""
    return count_parameters(case.settings, task_data) / count_parameters(first.settings, task_data) - 1
