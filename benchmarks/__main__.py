"""Measure, and write a dated report of each part: ``python -m benchmarks [attention|engines|overhead|...] ...``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import attention, engines, first_command, overhead, startup

RESULTS = Path(__file__).parent / "results"
Lines = Iterator[tuple[str, dict[str, Any]]]


def _attention() -> Lines:
    yield "# MultiAttention against nn.MultiheadAttention(need_weights=False)\n", {}
    yield f"Speed ratio, above 1 is faster; target {attention.TARGET}. Median (quartiles) of paired ratios.", {}
    yield "\n| (batch, length, embed_dim, heads) | causal | what | ours / theirs | control theirs / theirs | |", {}
    yield "|---|---|---|---|---|---|", {}
    for row in attention.rows():
        verdict = "reached" if row.reached else "**missed**"
        causal = "causal" if row.causal else ""
        yield f"| {row.shape} | {causal} | {row.what} | {row.ratio} | {row.control} | {verdict} |", asdict(row)


def _engines() -> Lines:
    yield "# What the softmax engine leaves out\n", {}
    yield "Speed ratio, above 1 is faster. Median (quartiles) of paired ratios. Batch 8 or 1, 8 heads of 64.\n", {}
    yield "| what | against | ours / theirs | control theirs / theirs | target | |", {}
    yield "|---|---|---|---|---|---|", {}
    for row in engines.rows():
        verdict = "reached" if row.ratio.median >= row.target else "**missed**"
        yield f"| {row.what} | {row.peer} | {row.ratio} | {row.control} | {row.target} | {verdict} |", asdict(row)
    exponent, steps = engines.growth()
    verdict = "reached" if exponent <= 1.15 else "**missed**"
    yield (
        f"\nA causal window of 256 grows from 1,024 to 8,192 tokens as N^{exponent:.2f} "
        f"({', '.join(f'{step:.2f}' for step in steps)} by doubling; target 1.15): {verdict}",
        {"growth": exponent, "by doubling": steps},
    )


def _overhead() -> Lines:
    ratio, control = overhead.ratio()
    verdict = "reached" if ratio.median >= overhead.TARGET else "**missed**"
    yield "# The trainer against a bare loop\n", {}
    yield (
        (
            f"Steps a second over {overhead.EPOCHS} epochs of {overhead.TRAIN} examples (embed_dim {overhead.WIDTH}, "
            f"{overhead.LENGTH} tokens, batch {overhead.BATCH}). The trainer also makes its run folder, evaluates "
            f"{overhead.VALIDATION} examples an epoch, writes logs and checkpoints; the bare loop does none of it. "
            f"The weights of both are compared first. Target {overhead.TARGET}.\n"
        ),
        {},
    )
    yield (
        f"trainer / bare loop {ratio}; control {control}: {verdict}",
        {"ratio": asdict(ratio), "control": asdict(control)},
    )


def _startup() -> Lines:
    found = startup.seconds()
    yield "# Start-up\n", {}
    yield f"Target: under {startup.TARGET} s on an idle core. Medians, taken in turn.\n", {}
    yield "| command | of `python -c 'import torch'` | |", {}
    yield "|---|---|---|", {}
    for name, value in found.items():
        share = value / found[startup.TORCH]
        verdict = "reached" if value < startup.TARGET else "**missed**"
        if name not in startup.OURS:
            verdict = "for comparison"
        yield f"| `{name}` | {share:.2f} | {verdict} |", {"command": name, "share": share}


def _first() -> Lines:
    found = first_command.results()
    accuracies = [accuracy for accuracy, _ in found]
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    slowest = max(seconds for _, seconds in found)
    good = mean >= first_command.ACCURACY and slowest <= first_command.SECONDS
    yield "# The first command\n", {}
    yield (
        (
            f"`python {first_command.COMMAND}`: test accuracy {mean:.3f} ± {spread:.3f} over {len(found)} seeds "
            f"({', '.join(f'{a:.3f}' for a in accuracies)}; target {first_command.ACCURACY}); "
            f"the slowest ended {'within' if slowest <= first_command.SECONDS else 'after'} {first_command.SECONDS} s: "
            f"{'reached' if good else '**missed**'}"
        ),
        {"accuracies": accuracies, "within": slowest <= first_command.SECONDS},
    )


PARTS: dict[str, Callable[[], Lines]] = {
    "attention": _attention,
    "engines": _engines,
    "overhead": _overhead,
    "startup": _startup,
    "first": _first,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"what to measure: {', '.join(PARTS)}; all without it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; there are: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    for part in options.parts or PARTS:
        _measure(part, options.threads)


def _measure(part: str, threads: int) -> None:
    """Print a part's report as it grows, and put it in the place of the part's last one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"{platform.machine()}, {threads} thread(s) of {os.cpu_count()} CPUs, load {load:.2f} at the start"
    )
    text, rows = [], []
    for line, values in PARTS[part]():
        print(line, flush=True)
        text.append(line)
        if values:
            rows.append(values)
    text += ["", f"Measured with `python -m benchmarks {part}`. {about}."]
    print("\n".join(text[-2:]) + "\n", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{part}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    data = json.dumps({"about": about, "rows": rows}, indent=1) + "\n"
    (RESULTS / f"{part}.json").write_text(data, encoding="utf-8")


if __name__ == "__main__":
    main()
