"""List published claims with their verdicts, or run their experiments: claims run NAME."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.padding import Padding
from rich.text import Text
from tyro.conf import Positional, arg

from attnlab.cli._console import Console, say
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.claims.record import Record

CLAIMS = Path("claims")


@dataclass
class ListOptions:
    """What to list."""

    names: Annotated[Positional[list[str]], arg(metavar="[NAME ...]")] = field(default_factory=list)
    """The claims whose criteria are printed; without names all are listed."""
    json: bool = False
    """Print JSON."""


@dataclass
class RunOptions:
    """What to run."""

    names: Annotated[Positional[list[str]], arg(metavar="[NAME ...]")] = field(default_factory=list)
    """The claims to run."""
    all: bool = False
    """Run all claims."""
    seeds: Annotated[int | None, arg(metavar="INT")] = None
    """The number of seeds; by default that of the claim."""
    jobs: int = 1
    """Runs at the same time, each on one thread."""
    on: Literal["local", "ray"] = "local"
    """Where: on this machine, or on the Ray cluster that RAY_ADDRESS names."""
    output: str = str(CLAIMS)
    """The folder of the runs."""
    record: bool = False
    """Record the results, from which docs/claims.md and the lessons are made; in a checkout only."""
    json: bool = False
    """Print the results as JSON and nothing else."""


def run(arguments: list[str]) -> int:
    """List the claims, or run some."""
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    description = "List published claims with their verdicts. To run their experiments: attnlab claims run NAME"
    options = parse(ListOptions, arguments, command="attnlab claims", description=description)
    from attnlab.claims import claim as claims
    from attnlab.claims import record

    chosen = [claims.load(name) for name in options.names or claims.names()]
    results = {each.name: record.read(each) for each in chosen}
    if options.json:
        say(json.dumps([{"claim": c.model_dump(), "result": _json(results[c.name])} for c in chosen]))
        return 0
    console = Console()
    for each in chosen:
        result = results[each.name]
        verdict = "not run yet" if result is None else result.verdict
        console.print(Text.assemble((each.name, "bold"), f": {verdict}"))
        console.print(Padding(Text(each.claim), (0, 0, 0, 2), expand=False))
        if options.names and result is not None:
            console.print(Padding(Text(each.paper), (0, 0, 0, 2), expand=False))
            _show(console, result)
    return 0


def _run(arguments: list[str]) -> int:
    """Run the experiments, and print their verdicts."""
    description = "Run the experiments of published claims; runs that have finished are used again."
    options = parse(RunOptions, arguments, command="attnlab claims run", description=description)
    from attnlab.catalog import registry
    from attnlab.claims import claim as claims

    if bool(options.names) == options.all:
        raise UserError(f"name the claims to run, or give --all; there are {', '.join(claims.names())}")
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    if options.seeds is not None and options.seeds < 2:
        raise UserError(f"--seeds must be at least 2, not {options.seeds}: one seed has no interval")
    if options.record and registry.checkout() is None:
        raise UserError("--record writes into a checkout, but attnlab is installed as a package")
    chosen = [claims.load(name) for name in (claims.names() if options.all else dict.fromkeys(options.names))]
    if options.record and options.seeds is not None and (few := [c for c in chosen if options.seeds < c.seeds]):
        raise UserError(f"{few[0].name} is recorded with at least {few[0].seeds} seeds; leave out --seeds or --record")
    from attnlab.claims import record
    from attnlab.claims.experiment import run as run_claim
    from attnlab.cli._runs_progress import RunsDisplay
    from attnlab.comparison.execute import executor
    from attnlab.comparison.run import Progress
    from attnlab.training.signals import StoppedError

    console = Console(stderr=options.json, quiet=options.json, soft_wrap=True)
    execute, results = executor(options.jobs, options.on), []
    for claim in chosen:
        try:
            with RunsDisplay(console, options.jobs) as display:
                folder = Path(options.output) / claim.name
                progress = Progress(display.stage, display.ended)
                result = run_claim(claim, folder, execute, progress, seeds=options.seeds)
        except StoppedError as stop:
            say(f"stopped; the same command resumes the runs in {options.output}", file=sys.stderr)
            return 128 + stop.signal
        results.append(result)
        console.print(Text.assemble((claim.name, "bold"), f": {result.verdict}"))
        _show(console, result)
        if options.record:
            record.write(result, claim)
    if options.json:
        say(json.dumps([_json(result) for result in results]))
    return 0


def _show(console: Console, result: Record) -> None:
    """Print the criteria with their estimates."""
    for each in result.criteria:
        text = f"{each.outcome}: {each.text}: {each.estimate}"
        console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def _json(result: Record | None) -> object:
    return None if result is None else result.model_dump() | {"verdict": result.verdict}
