"""Run the benchmarks and write a dated report: ``python -m benchmarks [attention|overhead|startup|first] ...``."""

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

from benchmarks import attention, first_command, overhead, startup

RESULTS = Path(__file__).parent / "results"
Lines = Iterator[tuple[str, dict[str, Any]]]


def _attention() -> Lines:
    yield "## MultiAttention against nn.MultiheadAttention(need_weights=False)", {}
    yield f"Speed ratio, above 1 is faster; target {attention.TARGET}. Median (quartiles) of paired ratios.", {}
    yield "\n| (batch, length, embed_dim, heads) | causal | what | ours / theirs | control theirs / theirs | |", {}
    yield "|---|---|---|---|---|---|", {}
    for row in attention.rows():
        verdict = "reached" if row.reached else "**missed**"
        causal = "causal" if row.causal else ""
        yield f"| {row.shape} | {causal} | {row.what} | {row.ratio} | {row.control} | {verdict} |", asdict(row)


def _overhead() -> Lines:
    ratio, control = overhead.ratio()
    verdict = "reached" if ratio.median >= overhead.TARGET else "**missed**"
    yield "\n## The trainer against a bare loop", {}
    yield (
        (
            f"Steps a second over {overhead.STEPS} steps (embed_dim {overhead.WIDTH}, {overhead.LENGTH} tokens, batch "
            f"{overhead.BATCH}), checkpoints and evaluations included; the weights of both are compared first. "
            f"Target {overhead.TARGET}.\n"
        ),
        {},
    )
    yield (
        f"trainer / bare loop {ratio}; control {control}: {verdict}",
        {"ratio": asdict(ratio), "control": asdict(control)},
    )


def _startup() -> Lines:
    found = startup.seconds()
    yield "\n## Start-up", {}
    yield f"Target: under {startup.TARGET} s on an idle core. Medians, taken in turn.\n", {}
    yield "| command | of `python -c 'import torch'` | under the target |", {}
    yield "|---|---|---|", {}
    for name, value in found.items():
        share = value / found["python -c 'import torch'"]
        yield (
            f"| `{name}` | {share:.2f} | {'yes' if value < startup.TARGET else 'no'} |",
            {"command": name, "share": share},
        )


def _first() -> Lines:
    found = first_command.results()
    accuracies = [accuracy for accuracy, _ in found]
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    slowest = max(seconds for _, seconds in found)
    good = mean >= first_command.ACCURACY and slowest <= first_command.SECONDS
    yield "\n## The first command", {}
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
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    about = (
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.machine()}, "
        f"{options.threads} thread(s) of {os.cpu_count()} CPUs, load {load:.2f} at the start"
    )
    text, data = [f"# Benchmarks, {datetime.now(UTC):%Y-%m-%d}", "", about, ""], []
    for part in options.parts or PARTS:
        for line, values in PARTS[part]():
            print(line, flush=True)
            text.append(line)
            if values:
                data.append({"part": part, **values})
    if not options.parts:  # a part alone is a look, not a result
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}"
        stem.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
        stem.with_suffix(".json").write_text(json.dumps({"about": about, "rows": data}, indent=1) + "\n")


if __name__ == "__main__":
    main()
