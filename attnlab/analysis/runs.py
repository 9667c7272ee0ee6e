"""Study and prune the heads of a run's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attnlab.analysis.heads import Study, study
from attnlab.analysis.importance import layers_with_heads, pruning_order, select_heads
from attnlab.network.pruning import prune_heads
from attnlab.nn.attention import UnsupportedError
from attnlab.training import hardware
from attnlab.training.checkpoint import load_tensors
from attnlab.training.experiment import Experiment, reopen
from attnlab.training.network_file import save_network
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError


def study_run(
    run: Run, device: str = "auto", *, share: float | None = None, **options: Any
) -> tuple[Experiment, Study]:
    """A run's data and best network, and the `study` of its heads with these ``options``.

    Raises:
        UserError: for a run without a network or a damaged one, a network without separable heads, or a ``share`` of
            the heads that cannot be pruned afterwards.
    """
    experiment = reopen(run, device)
    network = experiment.network
    try:
        if share is not None:
            counts = {i: layer.num_heads for i, layer in layers_with_heads(network).items()}
            steps = pruning_order(network, [torch.zeros(counts.get(i, 0)) for i in range(len(network.blocks))])
            select_heads(steps, share, num_heads=sum(counts.values()))
        with hardware.memory_advice(experiment.eval_batch_size):
            result = study(
                network,
                experiment.task_data,
                batch_size=experiment.eval_batch_size,
                seed=experiment.settings.training.seed,
                autocast=experiment.autocast,
                **options,
            )
    except UnsupportedError as error:
        raise UserError(f"{run.path}: {error}") from None
    return experiment, result


def prune_run(run: Run, experiment: Experiment, heads: dict[int, list[int]], path: Path) -> dict[str, Any]:
    """Save a run's network without these heads to a file that `attnlab.load` and ``attnlab predict`` read.

    Returns the pruned heads, the validation metric, and the number of parameters before and after.
    """
    network = prune_heads(experiment.network, heads)
    _, validation = evaluate(
        network,
        experiment.task_data.validation,
        Objective.of(experiment.task_data).additive(),
        batch_size=experiment.eval_batch_size,
        autocast=experiment.autocast,
    )
    _, about = load_tensors(run.path / "model.safetensors")
    about.pop("network")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(path, network, {**about, "validation": validation}, follow=True)
    return {
        "heads": heads,
        "validation": validation,
        "parameters_before": experiment.parameters,
        "parameters": sum(p.numel() for p in network.parameters()),
        "saved_to": str(path),
    }
