"""Measure, record the results and generate docs/performance.md: ``python -m benchmarks [part ...]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace

from attnlab.bench import machine
from attnlab.bench.timing import BRIEF, FULL, clock_for
from benchmarks import page, report


def main() -> None:
    """Measure the named parts, or all, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = report.names()
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(known)}; all by default; `page` measures none")
    parser.add_argument("--threads", type=int, default=1, help="threads, pinned to as many cores")
    parser.add_argument("--brief", action="store_true", help="three rounds each, to test that it runs; records nothing")
    options = parser.parse_args()
    names = [] if options.parts == ["page"] else options.parts or known
    for name in names:
        if name not in known:
            parser.error(f"unknown part {name!r}; choose from: {', '.join(known)}")
    if len(names) == 1:
        _measure(names[0], options.threads, options.brief)
    else:
        # One process per part: memory that was used before changes the cost of an allocation.
        flags = ["--threads", str(options.threads), *(["--brief"] if options.brief else [])]
        for name in names:
            subprocess.run([sys.executable, "-m", "benchmarks", name, *flags], check=True)
    if not options.brief and any(report.can_run(report.load(name)) for name in names or known):
        for file in page.write():
            print(f"written: {file.relative_to(page.ROOT)}")


def _measure(name: str, threads: int, brief: bool) -> None:
    part = report.load(name)
    for line in report.missing(part):
        print(f"{name}: {line}", flush=True)
    if not report.can_run(part):
        print(f"{name}: nothing was measured, and nothing is recorded", flush=True)
        return
    with machine.pinned(threads) as cores:
        timing = replace(BRIEF if brief else FULL, clock=clock_for("cpu"))
        result = report.measure(name, part, timing, cores, lambda line: print(line, flush=True))
    print()
    if not brief:
        report.record(result, part)


if __name__ == "__main__":
    main()
