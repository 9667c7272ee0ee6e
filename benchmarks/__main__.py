"""Measure, keep a report of each part, and make docs/performance.md of them: ``python -m benchmarks [part ...]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace

from benchmarks import machine, page, report
from benchmarks.pairing import BRIEF, FULL


def main() -> None:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    there = report.names()
    parser.add_argument(
        "parts", nargs="*", help=f"what to measure: {', '.join(there)}; all without it; or `page`, alone"
    )
    parser.add_argument("--threads", type=int, default=1, help="compute with so many threads, pinned to as many cores")
    parser.add_argument("--brief", action="store_true", help="three rounds each, to see that it runs; nothing is kept")
    options = parser.parse_args()
    names = [] if options.parts == ["page"] else options.parts or there
    for name in names:
        if name not in there:
            parser.error(f"unknown part {name!r}; there are: {', '.join(there)}")
    if len(names) == 1:
        _measure(names[0], options.threads, options.brief)
    for name in names if len(names) > 1 else []:
        # In a process of its own: what memory the parts before have used changes what an allocation costs.
        flags = ["--threads", str(options.threads), *(["--brief"] if options.brief else [])]
        subprocess.run([sys.executable, "-m", "benchmarks", name, *flags], check=True)
    if not options.brief and any(report.can_run(report.load(name)) for name in names or there):
        for file in page.write():
            print(f"written: {file.relative_to(page.ROOT)}")


def _measure(name: str, threads: int, brief: bool) -> None:
    cores = machine.pin(threads)
    pace = BRIEF if brief else FULL
    if threads > 1 or not cores:
        pace = replace(pace, clock=time.perf_counter)
    part = report.load(name)
    for line in report.missing(part):
        print(f"{name}: {line}", flush=True)
    if not report.can_run(part):
        print(f"{name}: nothing was measured, and nothing is recorded", flush=True)
        return
    result = report.measure(name, part, pace, cores, lambda line: print(line, flush=True))
    print()
    if not brief:
        report.keep(result, part)


if __name__ == "__main__":
    main()
