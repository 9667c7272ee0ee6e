"""Measure the speed and the peak memory of mechanisms."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.text import Text
from tyro.conf import arg

from attnlab.catalog import pattern
from attnlab.cli._console import UNLIMITED, Console, plain_table, say
from attnlab.cli._flags import parse_with_mechanisms, peek_words
from attnlab.cli._invocation import program, short
from attnlab.training.settings import RANGES
from attnlab.utils.errors import UnknownNameError, UserError
from attnlab.utils.escape import shell_word

if TYPE_CHECKING:
    from attnlab.bench.measurement import Group
    from attnlab.bench.results import Plan, Result

DESCRIPTION = """Measure the speed and the peak memory of mechanisms.

For example:
  {program} bench --models multihead linear "3*gateddeltanet,multihead" --lengths 256 1024 4096

Options of the mechanisms are flags as for training: --num_heads 4 for all that have it, --model.linear.feature_map relu
for one.
"""
PHASES = ("training", "prefill", "decode")
WIDTHS = (12, 8, 18, 10, 9)
"""The least widths of the columns of a table, so that those of all cases agree."""

Words = Annotated[tuple[str, ...], arg(metavar="MODEL ...")]
Numbers = Annotated[tuple[str, ...], arg(metavar="INT ...")]


@dataclass
class BenchOptions:
    """What is measured, and how long."""

    models: Words = ("multihead", "linear")
    """The models, the first of which the others are compared with: names, patterns in quotes, all, or family:NAME."""
    lengths: Numbers = ("256", "1024", "4096")
    """Tokens per sequence; in decoding, the tokens that are cached."""
    batch_sizes: Numbers = ("1",)
    """Sequences per batch."""
    phases: Annotated[tuple[str, ...], arg(metavar="PHASE ...")] = PHASES
    """training (forward and backward), prefill (forward, fills a cache) and decode (one token)."""
    embed_dim: int = 512
    """Width of the tokens."""
    layers: int = 1
    """Layers of each model; a pattern has at least one period."""
    causal: bool = True
    """Whether the layers are causal; decode needs it."""
    threads: int = 1
    """CPU threads, pinned to as many cores."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ...; auto takes the fastest that is available."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16 and float16 compute in mixed precision (autocast)."""
    budget: Annotated[float, arg(metavar="SECONDS")] = 60.0
    """Seconds of timing for all cases together; every case has at least five rounds."""
    peers: Annotated[tuple[str, ...], arg(metavar="PACKAGE ...")] = ()
    """Also measure multi-head attention of torch, x-transformers, transformers or keras; needs a checkout."""
    memory: bool = True
    """Whether peak memory is measured."""
    output: Annotated[str | None, arg(metavar="FOLDER")] = None
    """The folder for results.json, report.md and the figures; bench/NNN by default."""
    overwrite: bool = False
    """Replace the results in --output."""
    brief: bool = False
    """Three rounds per case: shows that everything runs, with noisy times."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> int:
    """Print a table per case, and write the results, the report and the figures."""
    words = peek_words(arguments, "models")
    models = pattern.expand(BenchOptions.models if words is None else words)
    mechanisms = [name for model in models.values() for name in pattern.mechanisms(model)]
    options, given = parse_with_mechanisms(
        BenchOptions,
        arguments,
        mechanisms,
        command="attnlab bench",
        description=DESCRIPTION.format(program=program()),
    )
    values = {name: options_ for name, options_ in given.items() if options_}
    lengths, batch_sizes = (
        _numbers(flag, words, RANGES[setting])
        for flag, words, setting in (
            ("lengths", options.lengths, "seq_length"),
            ("batch_sizes", options.batch_sizes, "batch_size"),
        )
    )
    phases = _names("phase", options.phases, PHASES)
    peers = list(dict.fromkeys(_split(options.peers)))
    for name in ("embed_dim", "layers", "threads"):
        low, high = RANGES[name]
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name} must be from {low:,} to {high:,}, not {getattr(options, name)}")
    if not 0 < options.budget <= 1e6:  # not NaN
        raise UserError(f"--budget must be above 0 and at most 1,000,000 seconds, not {options.budget}")

    from attnlab.bench.results import Plan
    from attnlab.training import hardware
    from attnlab.training.settings import Hardware

    settings = Hardware(device=options.device, precision=options.precision)
    device = hardware.prepare(settings)
    for line in hardware.warnings(settings, device):
        say(f"warning: {line}", file=sys.stderr)
    plan = Plan(
        models=models,
        options=values,
        lengths=lengths,
        batch_sizes=batch_sizes,
        phases=phases,  # type: ignore[arg-type]
        embed_dim=options.embed_dim,
        layers=options.layers,
        causal=options.causal,
        threads=options.threads,
        device=str(device),
        precision=options.precision,
        budget=0.0 if options.brief else options.budget,
        rounds=3 if options.brief else 5,
        peers=peers,
        memory=options.memory,
    )
    command = " ".join([program(), "bench", *map(shell_word, arguments)])
    return _measure(plan, options, command)


def _measure(plan: Plan, options: BenchOptions, command: str) -> int:
    from attnlab.bench import benchmark, report
    from attnlab.bench.machine import Machine, load_average, pinned
    from attnlab.bench.results import Result
    from attnlab.training.signals import StoppedError, raising_signals

    console, began, code = Console(quiet=options.json), time.perf_counter(), 0
    if not console.is_terminal:
        console.width = UNLIMITED
    status = Console(stderr=True).status(Text("building the models"))
    with pinned(plan.threads) as cores:
        built = benchmark.build(plan)
        result = Result(plan, Machine.current(cores, [peer for peer in plan.peers if peer != "torch"]))
        folder = _make_folder(options)
        cases = benchmark.run(plan, built, lambda text: status.update(Text(text)))
        try:
            with raising_signals(), status, closing(cases):
                for group in cases:
                    result.groups.append(group)
                    result.write(folder)
                    _print(console, group)
            result.finished = True
        except StoppedError as stopped:
            code = 128 + stopped.signal
    result.machine.load_after, result.machine.minutes = load_average(), (time.perf_counter() - began) / 60
    files = [result.write(folder), *report.write(result, folder, command)]
    if options.json:
        say(json.dumps(asdict(result), ensure_ascii=False, allow_nan=False))
    else:
        _print_summary(console, result, files)
    if code:
        say(f"stopped after {len(result.groups)} of {plan.cases} cases", file=sys.stderr)
    return code


def _print(console: Console, group: Group) -> None:
    from attnlab.bench.report import COLUMNS, cells, title

    table = plain_table(*COLUMNS, right=True, no_wrap=True)
    table.columns[0].justify, table.columns[0].no_wrap, table.columns[0].overflow = "left", False, "fold"
    for column, width in zip(table.columns, WIDTHS, strict=True):
        column.min_width = width
    for row in group.rows:
        table.add_row(*map(Text, cells(row)), style="dim" if row.seconds is None else "")
    console.print(Text(f"\n{title(group)}", style="bold"))
    console.print(table)
    for row in group.rows:
        if row.reason:
            console.print(f"  {row.model}: {row.reason}", style="dim")
    if group.control is not None:
        console.print(f"  control {group.control}, {group.control.rounds} rounds", style="dim")


def _print_summary(console: Console, result: Result, files: Sequence[Path]) -> None:
    from attnlab.bench.report import sentence
    from attnlab.bench.results import crossovers

    console.print()
    for crossover in crossovers(result.groups):
        console.print(sentence(crossover))
    console.print(
        "  relative: time over that of the first model, median and quartiles of the rounds; below 1 is faster",
        style="dim",
    )
    for line in result.warnings:
        console.print(f"warning: {line}", style="yellow")
    console.print(f"written: {', '.join(short(file) for file in files)}")


def _make_folder(options: BenchOptions) -> Path:
    """The folder of the results, created."""
    from attnlab.bench.results import FILE

    if options.output is None:
        parent = Path("bench")
        for number in count(1):
            try:
                (folder := parent / f"{number:03}").mkdir(parents=True)
            except FileExistsError:
                if parent.is_dir():
                    continue
                raise UserError(f"{parent} is a file, so there is no place for the results; give --output") from None
            return folder
    folder = Path(str(options.output))
    if (folder / FILE).exists() and not options.overwrite:
        raise UserError(f"{folder} has results already; give another --output, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --output {folder}: {getattr(error, 'strerror', error)}") from None
    return folder


def _split(words: Sequence[str]) -> list[str]:
    return [part.strip() for word in words for part in word.split(",")]


def _numbers(flag: str, words: Sequence[str], limits: tuple[float, float]) -> list[int]:
    """Whole numbers, each once, in ascending order."""
    numbers = set()
    for word in _split(words):
        if not (word.isascii() and word.isdigit() and limits[0] <= int(word) <= limits[1]):
            low, high = limits
            raise UserError(f"--{flag} takes whole numbers from {low:,} to {high:,}, not {word!a:.60}")
        numbers.add(int(word))
    if not numbers:
        raise UserError(f"--{flag} needs at least one number")
    return sorted(numbers)


def _names(kind: str, words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Known names, each once, in the order of ``known``."""
    given = _split(words)
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)
    if not given:
        raise UserError(f"at least one {kind} is needed: {', '.join(known)}")
    return [name for name in known if name in given]
