"""Run a plan: build the models and measure each case."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnlab.bench import peers
from attnlab.bench.measurement import Group, Progress, Row, measure_group, reason
from attnlab.bench.memory import MemoryProcess, limited
from attnlab.bench.results import Plan
from attnlab.bench.timing import BRIEF, FULL, clock_for
from attnlab.bench.workloads import Layers, Phase
from attnlab.catalog import pattern, registry
from attnlab.nn.card import UnsupportedError
from attnlab.training.settings import Hardware
from attnlab.utils.errors import UserError

SEED = 0


class Built(NamedTuple):
    """The models of a plan by label, and a row with the reason for those that cannot be built as it asks."""

    models: dict[str, nn.Module]
    refused: dict[str, Row]


def run(plan: Plan, built: Built, progress: Progress = lambda _: None) -> Generator[Group, None, None]:
    """Measure every case of a plan: all phases of the shortest length first."""
    settings = Hardware(device=plan.device, precision=plan.precision)  # type: ignore[arg-type]
    device = torch.device(plan.device)
    models, refused = built
    cases = [(length, B, phase) for length in sorted(plan.lengths) for B in plan.batch_sizes for phase in plan.phases]
    timing = replace(BRIEF if plan.budget == 0 else FULL, min_rounds=plan.rounds, clock=clock_for(device))
    remaining = plan.budget
    with ExitStack() as stack:
        process = stack.enter_context(MemoryProcess()) if plan.memory else None
        for i, (length, batch_size, phase) in enumerate(cases):
            began = timing.clock()
            share = replace(timing, budget=max(0.0, remaining) / (len(cases) - i))
            try:
                with limited(device):
                    x = _batch(plan, length, batch_size, phase, device)
                group = measure_group(models, x, phase, share, process, settings, progress)
            except (MemoryError, RuntimeError) as error:  # the batch itself
                rows = [Row(label, 0, reason=f"the batch {reason(error)}") for label in models]
                group = Group(phase, length, batch_size, rows)
            remaining -= timing.clock() - began
            measured = {row.model: row for row in group.rows} | refused
            yield replace(group, rows=[measured[label] for label in (*plan.models, *plan.peers)])


def build(plan: Plan) -> Built:
    """Build the models of a plan.

    Raises:
        UserError: for options that a mechanism refuses, or a peer that cannot be used.
    """
    device, dtype = torch.device(plan.device), _dtype(plan)
    models: dict[str, nn.Module] = {}
    refused: dict[str, Row] = {}
    for label, model in plan.models.items():
        torch.manual_seed(SEED)
        period = pattern.period(model)
        names = pattern.layer_names(model, max(plan.layers, len(period)))
        try:
            layers = [
                registry.load(name)(plan.embed_dim, causal=plan.causal, **plan.options.get(name, {})) for name in names
            ]
        except (UnsupportedError, MemoryError, RuntimeError) as error:
            refused[label] = Row(label, 0, reason=reason(error))
            continue
        except (TypeError, ValueError) as error:
            raise UserError(f"{label}: {error}") from None
        models[label] = Layers(layers).to(device, dtype)
    if plan.peers:
        if "multihead" not in plan.models.values() or plan.layers > 1:
            raise UserError("--peers compares one layer of multihead: add it to --models, and leave out --layers")
        if taken := set(plan.peers) & set(plan.models):
            raise UserError(f"{taken.pop()} is both a label in --models and one of --peers; choose another label")
        options = plan.options.get("multihead", {})
        like = torch.empty(0, device=device, dtype=dtype)
        models |= peers.layers(plan.peers, plan.embed_dim, options, causal=plan.causal, like=like)
    return Built(models, refused)


def _batch(plan: Plan, length: int, batch_size: int, phase: Phase, device: torch.device) -> Tensor:
    """The input; in decoding with one more token, which is decoded after the others."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batch_size, length + (phase == "decode"), plan.embed_dim, generator=generator, dtype=_dtype(plan))
    return x.to(device).requires_grad_(phase == "training")


def _dtype(plan: Plan) -> torch.dtype:
    """The dtype of parameters and input; mixed precision keeps them in float32."""
    return torch.float64 if plan.precision == "float64" else torch.float32
