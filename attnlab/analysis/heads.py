"""What each head of a trained network is worth.

Importance comes from a sample of the training data, every metric from the validation data: the heads to prune are
chosen by the one and judged on the other, and the test data are not looked at.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650, sections 3 and 4.

Axes: B batch, N length, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from attnlab.analysis.bootstrap import Change, paired_bootstrap, per_example_metric
from attnlab.analysis.importance import Place, attention_layers, importance, mean_heads, order, plan
from attnlab.network import Network
from attnlab.nn.pruning import edit_heads
from attnlab.tasks.base import Split, TaskData
from attnlab.training.objective import Objective


@dataclass(frozen=True)
class Head:
    """One head: its importance, and the network without it alone."""

    layer: int
    head: int
    importance: float
    without: Change


@dataclass(frozen=True)
class Step:
    """One step down the curve: the heads that went, how many are left, and what these reach."""

    gone: tuple[Place, ...]
    left: int
    reached: Change


@dataclass(frozen=True)
class Study:
    """What `study` found: ``whole`` is the metric of the network as it is."""

    metric: str
    whole: float
    heads: tuple[Head, ...]
    curve: tuple[Step, ...]
    ablation: str
    training_examples: int
    validation_examples: int

    def plan(self, share: float) -> dict[int, list[int]]:
        """The least important heads, as many as fit into this share of all, by layer: what `prune_heads` takes.

        Raises:
            UserError: for a share smaller than the first step of the curve, or larger than the whole of it.
        """
        return plan([step.gone for step in self.curve], share, of=len(self.heads))


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
    """Importance, each head ablated alone, and the curve of pruning the least important first.

    Args:
        network: of mechanisms with heads; it is left as it was.
        task_data: what it was trained on.
        examples: how many training examples importance (and the mean) are taken from, drawn by ``seed``.
        ablation: what replaces the output of a head that is ablated alone: ``zero`` or ``mean``. Along the curve it
            is always zero, which is what pruning amounts to.
        batch_size: of all passes.
        seed: of that sample, and of the resampling.
        autocast: the context in which the network is judged.
        progress: is told how many of how many passes over the validation data are done.

    Raises:
        UnsupportedError: for a mechanism without heads.
        ValueError: for fewer examples than one, or an ``ablation`` that does not exist.
    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation must be 'zero' or 'mean', not {ablation!r}")
    objective, layers = Objective.of(task_data).additive(), attention_layers(network)
    sample = _sampled(task_data.train, examples, seed)
    found = importance(network, sample, objective, batch_size=batch_size)
    means = mean_heads(network, sample, batch_size=batch_size) if ablation == "mean" else None
    places = [(i, head) for i, layer in enumerate(layers) for head in range(layer.num_heads)]
    steps = order(network, found)
    so_far = list(accumulate(steps))

    trials: list[tuple[tuple[Place, ...], list[Tensor] | None]] = [((), None)]
    trials += [((place,), means) for place in places]
    trials += [(gone, None) for gone in so_far]
    sums = []
    for done, (gone, filling) in enumerate(trials):
        if progress is not None:
            progress(done, len(trials))
        with without(network, gone, filling):
            sums.append(
                per_example_metric(network, task_data.validation, objective, batch_size=batch_size, autocast=autocast)
            )
    changes = paired_bootstrap(sums[0], sums, objective, seed=seed)
    alone, reached = changes[1 : len(places) + 1], changes[len(places) + 1 :]
    return Study(
        metric=objective.metric,
        whole=changes[0].metric,
        heads=tuple(Head(i, h, float(found[i][h]), change) for (i, h), change in zip(places, alone, strict=True)),
        curve=tuple(
            Step(step, len(places) - len(gone), change)
            for step, gone, change in zip(steps, so_far, reached, strict=True)
        ),
        ablation=ablation,
        training_examples=len(sample.x),
        validation_examples=len(task_data.validation.x),
    )


@contextmanager
def without(network: Network, heads: Sequence[Place], means: Sequence[Tensor] | None = None) -> Iterator[None]:
    """While this is open, these heads give zero, or what ``means`` ((H, d) for each layer) says of them.

    Raises:
        UnsupportedError: for a mechanism without heads.
    """
    with ExitStack() as stack:
        for i, layer in enumerate(attention_layers(network)):
            shut = torch.zeros(layer.num_heads, 1, dtype=torch.bool, device=next(network.parameters()).device)
            shut[[head for at, head in heads if at == i]] = True
            if shut.any():
                stack.enter_context(edit_heads(layer, _replacing(shut, None if means is None else means[i])))
        yield


def _replacing(shut: Tensor, filling: Tensor | None) -> Callable[[Tensor], Tensor]:
    """(B, N, H, d) with the heads that are ``shut`` (H, 1) replaced."""

    def edit(heads: Tensor) -> Tensor:
        if filling is None:
            return heads.masked_fill(shut, 0)
        return torch.where(shut, filling.to(heads.dtype), heads)

    return edit


def _sampled(split: Split, count: int, seed: int) -> Split:
    if count < 1:
        raise ValueError(f"importance is taken from at least 1 training example, not from {count}")
    if count >= len(split.x):
        return split
    chosen = torch.randperm(len(split.x), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return Split(split.x[chosen], split.y[chosen], None if split.lengths is None else split.lengths[chosen])
