"""Speed and memory of the networks of a comparison, by the method of `attnlab.bench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from attnlab.bench import Group, measure
from attnlab.bench.timing import FULL
from attnlab.bench.workloads import Phase
from attnlab.comparison.results import CostRecord
from attnlab.network import Network
from attnlab.tasks.base import TaskData

NAMES: Mapping[Phase, str] = {"training": "training speed", "prefill": "prefill time", "decode": "decoding time"}
TIMING = replace(FULL, budget=4.0, max_rounds=25)


def measure_costs(networks: Mapping[str, Network], task_data: TaskData, batch_size: int) -> dict[str, CostRecord]:
    """Training speed and peak memory in batches of ``batch_size``; prefill and decoding of one sequence.

    All networks are measured in turn, on one thread; peak memory in another process.
    """
    x = task_data.test.x
    one, batch = x[:1], x[: min(batch_size, len(x))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (training,) = measure(networks, batch, phases=["training"], timing=TIMING)
        others = measure(networks, one, phases=["prefill", "decode"], timing=TIMING, memory=False)
    finally:
        torch.set_num_threads(threads)
    return {label: _record(label, training, *others) for label in networks}


def _record(label: str, training: Group, prefill: Group, decode: Group) -> CostRecord:
    step, forward, token = (
        next(row for row in group.rows if row.model == label) for group in (training, prefill, decode)
    )
    spreads = [(row.ratio.upper - row.ratio.lower) / row.ratio.median for row in (step, forward, token) if row.ratio]
    return CostRecord(
        tokens_per_second=step.tokens_per_second,
        prefill_ms=None if forward.seconds is None else 1_000 * forward.seconds,
        decode_ms=None if token.seconds is None else 1_000 * token.seconds,
        peak_bytes=step.peak_bytes,
        length=prefill.length,
        batch=training.batch_size,
        spread=max(spreads, default=None),
        notes=[
            f"{NAMES[group.phase]}: {row.reason}."
            for group, row in ((training, step), (prefill, forward), (decode, token))
            if row.reason
        ],
    )
