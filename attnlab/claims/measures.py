"""What a claim measures on a finished run, other than the test metric of the task.

Axes: B batch, N length, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnlab.analysis.importance import importance, pruning_order, select_heads
from attnlab.network.pruning import prune_heads
from attnlab.training.experiment import reopen
from attnlab.training.objective import Objective, batches, eval_mode, evaluate
from attnlab.training.runs import Run

IMPORTANCE_EXAMPLES = 1_000
"""Training examples that the importance of the heads is computed on."""
WEIGHT_EXAMPLES = 64
"""Test examples that attention weights are computed on."""
FIRST_QUERY = 16
"""The first query whose attention weights count: earlier ones have few keys to choose from."""


def pruned(run: Run, shares: Sequence[float]) -> list[float]:
    """The test metric after the least important heads were removed, for each share of all heads.

    Source of the importance: Michel et al. 2019, section 4.1 (see `attnlab.analysis.importance`).
    """
    experiment = reopen(run)
    network, data = experiment.network, experiment.task_data
    objective = Objective.of(data).additive()
    sample = data.train.take(slice(IMPORTANCE_EXAMPLES))
    steps = pruning_order(network, importance(network, sample, objective))
    total = sum(len(step) for step in steps) + len(network.blocks)  # the last head of a layer is never removed
    values = []
    for share in shares:
        smaller = prune_heads(network, select_heads(steps, share, num_heads=total)) if share else network
        _, metric = evaluate(smaller, data.test, objective, batch_size=experiment.eval_batch_size)
        values.append(metric)
    return values


@torch.no_grad()
def first_token(run: Run) -> float:
    """The mean attention weight on the first token, over the heads, layers and queries from `FIRST_QUERY` on."""
    experiment = reopen(run)
    network = experiment.network
    split = experiment.task_data.test.take(slice(WEIGHT_EXAMPLES))
    means: list[float] = []

    def measure(layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        weights = layer.attention_weights(arguments[0])  # type: ignore[operator]  # (B, H, N, N)
        means.append(float(weights[..., FIRST_QUERY:, 0].mean()))

    handles = [layer.register_forward_pre_hook(measure) for layer in network.mechanisms()]
    try:
        with eval_mode(network):
            for x, _, lengths in batches(network, split, WEIGHT_EXAMPLES):
                network(x, lengths)
    finally:
        for handle in handles:
            handle.remove()
    return sum(means) / len(means)
