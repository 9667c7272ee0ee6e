"""Peak memory of a computation, counted from every allocation."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells standard error that it starts and stops


def peak(work: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The most bytes that PyTorch's allocator holds during ``work``, beyond what it held before.

    On a CPU the highest running total of the allocations and releases that PyTorch's profiler sees: exact, and the
    same in every run, unlike the resident memory of the process. What the matrix library packs for itself, a few
    megabytes, is not seen. On a GPU the allocator's own maximum.

    Raises:
        ValueError: for a device whose allocations cannot be counted.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if kind != "cpu":
        raise ValueError(f"allocations are counted on cpu and cuda, not on {kind}")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    total = highest = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        total += event["args"]["Bytes"]
        highest = max(highest, total)
    return highest
