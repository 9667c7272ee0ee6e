"""Measure docs/hybrids.md: recall accuracy against the size of the cache, ``python -m attnlab.docs.hybrids``.

Every network has eight layers and learns the task `recall` (see `attnlab.tasks.recall`): eight pairs in 32 tokens, with
a vocabulary of 32. They differ in the share of layers with full attention alone. A state of `gateddeltanet` has 4 x 4
numbers per head, which is too small for eight pairs.

Every finished run is recorded in docs/hybrids.json, so that an interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attnlab.catalog import registry
from attnlab.utils import markdown
from attnlab.utils.errors import UserError

PATTERNS = {
    "0:8": "gateddeltanet",
    "1:7": "7*gateddeltanet,multihead",
    "1:3": "3*gateddeltanet,multihead",
    "1:1": "gateddeltanet,multihead",
    "8:0": "multihead",
}
"""The pattern of each ratio of layers with full attention to layers with a recurrence."""

LAYERS, EMBED_DIM, LENGTH, PAIRS, VOCABULARY = 8, 32, 32, 8, 32
OPTIONS = {"gateddeltanet": 8, "multihead": 2}
"""The number of heads of each mechanism."""
STEPS, BATCH, LEARNING_RATE = 800, 64, 5e-3
TEST = 1_000
"""Sequences that the accuracy is measured on."""
SEEDS = 3
QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; scipy would load NumPy for `attnlab docs`.

With more values the last one is used, and the interval is slightly too wide.
"""
LONG = 4_096
"""The length for which the memory is computed."""


def main() -> None:
    """Train what is not recorded yet, then print the table."""
    parser = argparse.ArgumentParser(description="Measure the table of docs/hybrids.md.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the number of networks per ratio")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps per network")
    parser.add_argument("--again", action="store_true", help="measure recorded runs again")
    parser.add_argument("--output", type=Path, help="the file of the results; docs/hybrids.json by default")
    arguments = parser.parse_args()
    if arguments.output is None:
        root = registry.checkout()
        if root is None:
            raise UserError("docs/hybrids.json is in a checkout; give another file with --output")
        arguments.output = root / "docs" / "hybrids.json"
    fresh = arguments.again or not arguments.output.is_file()
    results = [] if fresh else json.loads(arguments.output.read_text(encoding="utf-8"))
    for seed in range(arguments.seeds):
        for ratio in PATTERNS:
            if any((run["ratio"], run["seed"], run["steps"]) == (ratio, seed, arguments.steps) for run in results):
                continue
            run = measure(ratio, seed, arguments.steps)
            print(f"ratio {ratio:<4} seed {seed}  accuracy {run['accuracy']:.3f}", flush=True)
            results.append(run)
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(results)}\n\nattnlab docs writes the table to docs/hybrids.md")


def measure(ratio: str, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Train one network, and return its accuracy and the memory of its caches, as JSON values."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from attnlab.network import Network
    from attnlab.tasks.base import IGNORE
    from attnlab.tasks.recall import mqar

    def draw(generator: np.random.Generator, count: int) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in mqar(generator, count, LENGTH, PAIRS, VOCABULARY)]

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, tokens = PATTERNS[ratio], ("tokens", VOCABULARY)
    heads = {name: {"num_heads": count} for name, count in OPTIONS.items() if name in model}
    network = Network(
        model, tokens, tokens, LENGTH, embed_dim=EMBED_DIM, layers=LAYERS, options=heads, causal=True, mlp=False
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng([seed, 0])
    for _ in range(steps):
        x, y = draw(generator, BATCH)
        loss = F.cross_entropy(network(x).transpose(1, 2), y, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    x, y = draw(np.random.default_rng([seed, 1]), TEST)
    with torch.no_grad():
        correct = (network.eval()(x).argmax(-1) == y)[y != IGNORE]
        caches = network.caches()
        assert caches is not None
        network(x[:1, :1], caches=caches)  # one token of one sequence
    return {
        "ratio": ratio,
        "seed": seed,
        "steps": steps,
        "accuracy": round(correct.float().mean().item(), 4),
        "bytes_per_token": caches.bytes_per_token,
        "bytes_per_sequence": caches.bytes_per_sequence,
    }


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The results as a table: a row per ratio, with the mean accuracy over the seeds and its 95 % interval."""
    by_ratio: dict[str, list[Mapping[str, Any]]] = {}
    for run in results:
        by_ratio.setdefault(run["ratio"], []).append(run)
    rows = []
    for ratio in (ratio for ratio in PATTERNS if ratio in by_ratio):
        runs = by_ratio[ratio]
        token, sequence = runs[0]["bytes_per_token"], runs[0]["bytes_per_sequence"]
        mean, low, high = interval([run["accuracy"] for run in runs])
        rows.append(
            (
                ratio,
                f"`{PATTERNS[ratio]}`",
                f"{mean:.3f} ({low:.3f} to {high:.3f})" if len(runs) > 1 else f"{mean:.3f} (one network)",
                f"{token:,}",
                f"{sequence:,}",
                f"{(sequence + LONG * token) / 1024:,.0f} KiB",
            )
        )
    memory = ("bytes per token", "bytes per sequence", f"at {LONG:,} tokens")
    return markdown.table(("attention : recurrence", "`--model`", "accuracy (95 % interval)", *memory), rows)


def recorded(file: Path) -> str:
    """The table of the recorded results, with the number of networks per ratio."""
    if not file.is_file():
        return "Not measured yet: run `python -m attnlab.docs.hybrids`."
    results = json.loads(file.read_text(encoding="utf-8"))
    networks, steps = Counter(run["ratio"] for run in results), results[0]["steps"]
    most, complete = max(networks.values()), len(set(networks.values())) == 1
    per_row = f"{most} network{'s' * (most > 1)} {'per row' if complete else 'per row at most'}"
    return f"{table(results)}\n\n{per_row}, {steps} training steps each."


def interval(values: list[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t, within 0 and 1; the whole range for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0, 1.0
    quantile = QUANTILES[min(len(values) - 1, len(QUANTILES)) - 1]
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


if __name__ == "__main__":
    main()
