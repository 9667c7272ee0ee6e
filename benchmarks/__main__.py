"""Measure, keep a report of each part, and make docs/performance.md of them: ``python -m benchmarks [part ...]``."""

from __future__ import annotations

import argparse
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
    if options.parts != ["page"]:
        for name in options.parts:
            if name not in there:
                parser.error(f"unknown part {name!r}; there are: {', '.join(there)}")
        cores = machine.pin(options.threads)
        pace = BRIEF if options.brief else FULL
        if options.threads > 1 or not cores:
            pace = replace(pace, clock=time.perf_counter)
        for name in options.parts or there:
            part = report.load(name)
            result = report.measure(name, part, pace, cores, lambda line: print(line, flush=True))
            print()
            if not options.brief:
                report.keep(result, part)
    if not options.brief:
        for file in page.write():
            print(f"written: {file.relative_to(page.ROOT)}")


if __name__ == "__main__":
    main()
