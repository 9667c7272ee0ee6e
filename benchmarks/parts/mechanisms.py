"""Whether the cost of every mechanism grows with the length as its card states."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnlab.bench.timing import TimingConfig, forward, median_seconds
from attnlab.catalog import registry
from attnlab.checks import allocations
from attnlab.checks.costs import exponent
from attnlab.checks.families.memory import CASES
from attnlab.masks import Mask
from attnlab.nn.attention import Attention
from benchmarks.results import Growth, Row

TITLE = "Growth of every mechanism with the length"
ABOUT = (
    "A causal forward pass of one sequence, embed_dim 64, 4 heads, all other options at their defaults, in eval mode "
    "under `inference_mode`. The limit is the exponent of the cost formula on the card over the same lengths, plus 0.2 "
    "for time and 0.15 for peak memory. The measured exponent is smaller where a part of the cost does not grow yet."
)

LENGTHS = (1024, 2048, 4096, 8192)
LONGEST = 4096
D, H = 64, 4
MARGINS = {"time": 0.2, "peak memory": 0.15}


def rows(
    timing: TimingConfig, lengths: tuple[int, ...] = LENGTHS, names: tuple[str, ...] | None = None
) -> Iterator[Row]:
    timing = replace(timing, min_rounds=3)
    for name in names or registry.names():
        torch.manual_seed(0)
        mechanism = registry.load(name)
        options = {"num_heads": H} if registry.entry(name).card.heads != "1" else {}
        if "max_length" in inspect.signature(mechanism).parameters:
            options["max_length"] = max(lengths)
        layer = mechanism(D, causal="causal" in mechanism.card.supports, **options).eval()
        workloads = {N: forward(partial(layer, torch.randn(1, N, D))) for N in lengths}
        times = median_seconds(workloads, timing)
        yield _growth(name, layer, "time", times)
        yield _growth(name, layer, "peak memory", {N: allocations.peak(run) for N, run in workloads.items()})
        for case, (needs, mask) in CASES.items():
            if needs - {"dropout"} <= {*mechanism.card.supports}:
                dropout = 0.1 if "dropout" in needs else 0.0
                is_causal = "causal" in needs or mechanism.card.always_causal
                layer = mechanism(D, causal=is_causal, dropout=dropout, **options)
                inputs = {N: (torch.randn(1, N, D), mask(N, torch.device("cpu"))) for N in lengths if N <= LONGEST}
                peaks = {N: allocations.peak(partial(_step, layer, *each)) for N, each in inputs.items()}
                yield _growth(f"{name}, {case}, training", layer, "peak memory", peaks)


def _growth(case: str, layer: Attention, quantity: str, values: Mapping[int, float]) -> Growth:
    cost, lengths = layer.card.time if quantity == "time" else layer.card.memory, tuple(values)
    return Growth(
        case,
        f"card: {cost}",
        quantity=quantity,
        lengths=list(lengths),
        values=[float(value) for value in values.values()],
        limit=exponent(cost, layer, lengths) + MARGINS[quantity],
        goal="cards",
    )


def _step(layer: Attention, x: Tensor, mask: Mask | None) -> None:
    layer(x.requires_grad_(), **({} if mask is None else {"mask": mask})).sum().backward()
