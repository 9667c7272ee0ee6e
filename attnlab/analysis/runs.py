"""The heads of a run's network: studied, and pruned into a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attnlab.analysis.heads import Study, study
from attnlab.analysis.importance import attention_layers, order, plan
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.pruning import prune_heads
from attnlab.training import hardware
from attnlab.training.checkpoint import load_tensors
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run, save_network
from attnlab.training.train import Experiment, reopen
from attnlab.utils.errors import UserError


def study_run(
    run: Run, device: str = "auto", *, share: float | None = None, **options: Any
) -> tuple[Experiment, Study]:
    """A run's data and best network, and what each of its heads is worth.

    Args:
        run: a run that holds a network.
        device: where to compute.
        share: what shall be pruned afterwards; whether it can be is found out before.
        options: those of `study`.

    Raises:
        UserError: a run that holds no network yet, or is damaged; a mechanism without heads; a share that cannot be
            pruned.
    """
    experiment = reopen(run, device)
    batch_size = _batch_size(experiment)
    try:
        if share is not None:
            counts = [layer.num_heads for layer in attention_layers(experiment.network)]
            plan(order(experiment.network, [torch.zeros(count) for count in counts]), share, of=sum(counts))
        with hardware.memory_advice(batch_size):
            found = study(
                experiment.network,
                experiment.task_data,
                batch_size=batch_size,
                seed=experiment.settings.training.seed,
                autocast=hardware.autocast(experiment.settings.hardware, experiment.device),
                **options,
            )
    except UnsupportedError as error:
        raise UserError(f"{run.path}: {error}") from None
    return experiment, found


def prune_run(run: Run, experiment: Experiment, heads: dict[int, list[int]], path: Path) -> dict[str, Any]:
    """Save a run's network without these heads in a file that `attnlab.load` and ``attnlab predict`` read.

    Returns:
        What went, its validation metric, and its number of parameters before and after.

    Raises:
        UserError: a file that cannot be written.
    """
    network = prune_heads(experiment.network, heads)
    _, validation = evaluate(
        network,
        experiment.task_data.validation,
        Objective.of(experiment.task_data).additive(),
        batch_size=_batch_size(experiment),
        autocast=hardware.autocast(experiment.settings.hardware, experiment.device),
    )
    _, about = load_tensors(run.path / "model.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(
        path, network, {**{k: v for k, v in about.items() if k != "network"}, "validation": validation}, follow=True
    )
    return {
        "heads": heads,
        "validation": validation,
        "parameters_before": experiment.parameters,
        "parameters": sum(p.numel() for p in network.parameters()),
        "saved_to": str(path),
    }


def _batch_size(experiment: Experiment) -> int:
    return max(experiment.settings.training.batch_size, 128)
