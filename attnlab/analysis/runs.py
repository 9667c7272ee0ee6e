"""The heads of a run's network: studied, and pruned into a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attnlab.analysis.heads import Study, study
from attnlab.analysis.importance import every_headed, order, plan
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.pruning import prune_heads
from attnlab.training import hardware
from attnlab.training.checkpoint import load_tensors
from attnlab.training.objective import Objective, evaluate
from attnlab.training.runs import Run, save_network
from attnlab.training.train import Prepared, reopen
from attnlab.utils.errors import UserError


def study_run(run: Run, device: str = "auto", *, share: float | None = None, **options: Any) -> tuple[Prepared, Study]:
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
    prepared = reopen(run, device)
    batch_size = _batch_size(prepared)
    try:
        if share is not None:
            counts = [layer.num_heads for layer in every_headed(prepared.network)]
            plan(order(prepared.network, [torch.zeros(count) for count in counts]), share, of=sum(counts))
        with hardware.memory_advice(batch_size):
            found = study(
                prepared.network,
                prepared.problem,
                batch_size=batch_size,
                seed=prepared.settings.training.seed,
                autocast=hardware.autocast(prepared.settings.machine, prepared.device),
                **options,
            )
    except UnsupportedError as error:
        raise UserError(f"{run.path}: {error}") from None
    return prepared, found


def prune_run(run: Run, prepared: Prepared, heads: dict[int, list[int]], path: Path) -> dict[str, Any]:
    """Save a run's network without these heads in a file that `attnlab.load` and ``attnlab predict`` read.

    Returns:
        What went, its validation metric, and its number of parameters before and after.

    Raises:
        UserError: a file that cannot be written.
    """
    network = prune_heads(prepared.network, heads)
    _, validation = evaluate(
        network,
        prepared.problem.validation,
        Objective.of(prepared.problem).additive(),
        batch_size=_batch_size(prepared),
        autocast=hardware.autocast(prepared.settings.machine, prepared.device),
    )
    _, about = load_tensors(run.path / "model.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(
        path, network, {**{k: v for k, v in about.items() if k != "network"}, "validation": validation}, follow=True
    )
    return {
        "heads": heads,
        "validation": validation,
        "parameters_before": prepared.parameters,
        "parameters": sum(p.numel() for p in network.parameters()),
        "saved_to": str(path),
    }


def _batch_size(prepared: Prepared) -> int:
    return max(prepared.settings.training.batch_size, 128)
