"""How much memory a computation holds at its most."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.pairing import Work

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells standard error that it starts and stops


def peak(work: Work) -> int:
    """The most bytes that PyTorch's CPU allocator holds during the work, beyond what it held before.

    PyTorch's profiler sees every allocation and every release; this is the highest of their running totals. It is exact
    and the same in every run, which the resident memory of the process is not. What the matrix library packs for itself
    is not seen: a few megabytes, for us and for them.
    """
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
