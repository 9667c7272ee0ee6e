"""Peak memory of a computation, counted from every allocation."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler logs its start and stop to standard error


def peak(work: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The largest number of bytes that PyTorch's allocator holds during ``work``, minus those it held before.

    On a CPU the maximum of the running total of allocations that PyTorch's profiler records: exact, and the
    same in every run, unlike the resident memory of the process. Packing buffers of the matrix library, a few
    megabytes, are not included. On a GPU the maximum that the allocator reports.

    Raises:
        ValueError: the allocations of the device cannot be counted.
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
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    return max(accumulate((change["args"]["Bytes"] for change in changes), initial=0))
