"""Whether every mechanism costs what its card says, as the sequence grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnlab.catalog import registry
from attnlab.checks import allocations
from attnlab.checks.costs import exponent
from attnlab.checks.families.memory import CASES
from attnlab.masks import Mask
from attnlab.nn.attention import Attention
from benchmarks.pairing import Pace, forward, seconds
from benchmarks.results import Growth, Row

TITLE = "Every mechanism grows as its card says"
ABOUT = (
    "A causal forward pass of one sequence, embed_dim 64, 4 heads, every other option as it comes, in eval mode under "
    "`inference_mode`. The card's formula is computed at the same lengths, and its exponent is the limit, with 0.2 "
    "more for time and 0.15 for peak memory. A cost may grow less than said, where a part of it does not grow yet."
)

LENGTHS = (1024, 2048, 4096, 8192)
LONGEST = 4096
D, H = 64, 4
ABOVE = {"time": 0.2, "peak memory": 0.15}


def rows(pace: Pace, lengths: tuple[int, ...] = LENGTHS, names: tuple[str, ...] | None = None) -> Iterator[Row]:
    """The growth of time and of memory of each."""
    pace = replace(pace, least=3)
    for name in names or registry.names():
        torch.manual_seed(0)
        make = registry.load(name)
        options = {"num_heads": H} if registry.entry(name).card.heads != "1" else {}
        layer = make(D, causal="causal" in make.card.supports, **options).eval()
        works = {N: forward(partial(layer, torch.randn(1, N, D))) for N in lengths}
        found: dict[str, dict[int, float]] = {
            "time": seconds(works, pace),
            "peak memory": {N: float(allocations.peak(work)) for N, work in works.items()},
        }
        for quantity, cost in (("time", layer.card.time), ("peak memory", layer.card.memory)):
            limit = exponent(cost, layer, lengths) + ABOVE[quantity]
            curve = [found[quantity][N] for N in lengths]
            yield Growth(name, quantity, list(lengths), curve, limit, goal="cards", against=f"the card: {cost}")
        yield from _training(name, make, options, tuple(N for N in lengths if N <= LONGEST))


def _training(name: str, make: type[Attention], options: dict[str, int], lengths: tuple[int, ...]) -> Iterator[Growth]:
    """Peak memory of a training step: plain, causal, with padding, a window, dropout and combinations."""
    for case, (needs, mask) in CASES.items():
        if not needs - {"dropout"} <= {*make.card.supports}:
            continue
        causal = "causal" in needs
        layer = make(D, causal=causal, dropout=0.1 if "dropout" in needs else 0.0, **options)
        works = (partial(_step, layer, torch.randn(1, N, D), mask(N, torch.device("cpu"))) for N in lengths)
        curve = [float(allocations.peak(work)) for work in works]
        cost = layer.card.memory
        limit = exponent(cost, layer, lengths) + ABOVE["peak memory"]
        against = f"the card: {cost}"
        yield Growth(f"{name}, {case}, training", "peak memory", list(lengths), curve, limit, "cards", against)


def _step(layer: Attention, x: Tensor, mask: Mask | None) -> None:
    layer(x.requires_grad_(), **({} if mask is None else {"mask": mask})).sum().backward()
