"""Head importance, ablation of single heads, and the pruning curve of a trained network.

Importance is computed on a sample of the training data, every metric on the validation data: heads are selected on the
one and evaluated on the other. The test data are not used.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650, sections 3 and 4.

Axes: B batch, N length, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from attnlab.analysis.bootstrap import Change, paired_bootstrap, per_example_metric
from attnlab.analysis.importance import (
    HeadIndex,
    importance,
    layers_with_heads,
    mean_heads,
    pruning_order,
    select_heads,
    without_heads,
)
from attnlab.network import Network
from attnlab.network.pruning import edit_heads
from attnlab.tasks.base import TaskData
from attnlab.training.objective import Objective


@dataclass(frozen=True)
class Head:
    """One head, its importance, and the metric of the network without it."""

    layer: int
    head: int
    importance: float
    without: Change


@dataclass(frozen=True)
class Step:
    """One step of the pruning curve: the heads pruned in it, the number left, and the metric then."""

    gone: tuple[HeadIndex, ...]
    left: int
    reached: Change


@dataclass(frozen=True)
class Study:
    """The result of `study`; ``whole`` is the metric with all heads, ``note`` names the layers without heads."""

    metric: str
    whole: float
    heads: tuple[Head, ...]
    curve: tuple[Step, ...]
    ablation: str
    training_examples: int
    validation_examples: int
    note: str = ""

    def plan(self, share: float) -> dict[int, list[int]]:
        """The least important heads up to a share of all, by layer; see `select_heads`."""
        return select_heads([step.gone for step in self.curve], share, num_heads=len(self.heads))


def study(
    network: Network,
    task_data: TaskData,
    *,
    examples: int = 2_000,
    ablation: Literal["zero", "mean"] = "zero",
    batch_size: int = 128,
    seed: int = 0,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Importance, ablation of each head, and the curve of pruning the least important heads first.

    Args:
        network: with multi-head attention, at least in some layers; it is not changed.
        task_data: the data it was trained on.
        examples: training examples for importance and means, drawn by ``seed``.
        ablation: what replaces the output of an ablated head, ``zero`` or ``mean``; always zero along the curve,
            because pruning amounts to that.
        batch_size: of all passes.
        seed: of the sample and of the bootstrap.
        autocast: the context of the forward passes.
        progress: called with the number of finished passes over the validation data and their total.

    Raises:
        UnsupportedError: for a network without a layer with separable heads.
        ValueError: for less than one example, or an unknown ``ablation``.
    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation must be 'zero' or 'mean', not {ablation!r}")
    objective, layers = Objective.of(task_data).additive(), layers_with_heads(network)
    if examples < 1:
        raise ValueError(f"importance needs at least 1 training example, not {examples}")
    order = torch.randperm(len(task_data.train.x), generator=torch.Generator().manual_seed(seed))
    sample = task_data.train.take(order[:examples].sort().values)
    importances = importance(network, sample, objective, batch_size=batch_size)
    means = mean_heads(network, sample, batch_size=batch_size) if ablation == "mean" else None
    indices = [(i, head) for i, layer in layers.items() for head in range(layer.num_heads)]
    steps = pruning_order(network, importances)
    pruned = list(accumulate(steps))

    trials: list[tuple[tuple[HeadIndex, ...], list[Tensor] | None]] = [((), None)]
    trials += [((index,), means) for index in indices]
    trials += [(heads, None) for heads in pruned]
    sums = []
    for done, (heads, replacement) in enumerate(trials):
        if progress is not None:
            progress(done, len(trials))
        with without(network, heads, replacement):
            sums.append(
                per_example_metric(network, task_data.validation, objective, batch_size=batch_size, autocast=autocast)
            )
    whole, *changes = paired_bootstrap(sums[0], sums, objective, seed=seed)
    return Study(
        metric=objective.metric,
        whole=whole.metric,
        heads=tuple(
            Head(layer, head, float(importances[layer][head]), change)
            for (layer, head), change in zip(indices, changes, strict=False)
        ),
        curve=tuple(
            Step(step, len(indices) - len(heads), change)
            for step, heads, change in zip(steps, pruned, changes[len(indices) :], strict=True)
        ),
        ablation=ablation,
        training_examples=len(sample.x),
        validation_examples=len(task_data.validation.x),
        note=without_heads(network),
    )


@contextmanager
def without(network: Network, heads: Sequence[HeadIndex], means: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Replace the output of these heads by zero, or by ``means`` ((H, d) for each layer), inside the context."""
    with ExitStack() as stack:
        for i, layer in layers_with_heads(network).items():
            ablated = torch.zeros(layer.num_heads, 1, dtype=torch.bool, device=next(network.parameters()).device)
            ablated[[head for index, head in heads if index == i]] = True
            if ablated.any():
                replacement = torch.zeros_like(ablated) if means is None else means[i]
                stack.enter_context(edit_heads(layer, partial(_replace, ablated, replacement)))
        yield


def _replace(ablated: Tensor, replacement: Tensor, heads: Tensor) -> Tensor:
    """Replace the heads (B, N, H, d) that are marked in ``ablated`` (H, 1) by ``replacement`` (H, d)."""
    return torch.where(ablated, replacement.to(heads.dtype), heads)
