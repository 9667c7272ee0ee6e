"""Run ``attnlab compare``: the settings of each model, progress, and the summary; imports torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnlab.catalog import pattern
from attnlab.catalog.pattern import ALL, FAMILY
from attnlab.cli._console import Console, plain_table, say
from attnlab.cli._flags import Output, parse_train_args
from attnlab.cli._invocation import program, short
from attnlab.cli._runs_progress import RunsDisplay
from attnlab.cli._split import groups, parse_flag
from attnlab.comparison import analysis, results
from attnlab.comparison.execute import executor
from attnlab.comparison.plan import Sweep, Value
from attnlab.comparison.report import FILES, PICTURES, write_reports
from attnlab.comparison.results import Results
from attnlab.comparison.run import Progress, Question
from attnlab.comparison.run import compare as run_comparison
from attnlab.files.atomic import UNFINISHED
from attnlab.training import locks
from attnlab.training.folder import remove_unfinished
from attnlab.training.settings import ALIASES, Settings, option_flags, renamed_flags, spellings
from attnlab.training.signals import StoppedError
from attnlab.utils.errors import UserError
from attnlab.utils.escape import shell_word

if TYPE_CHECKING:
    from attnlab.cli.compare import CompareOptions

COMPARISONS = Path("comparisons")
TUNING = (1 / 3, 1.0, 3.0)
"""The learning rates of ``--lr sweep``, in multiples of the task's default."""
OTHER_FLAGS = {
    "model": "--models",
    "seed": "--seeds",
    "threads": "--jobs",
    "learning_rate": "--lr",
    "run_dir": "--output",
    "config": "the settings as flags",
}
"""What stands in the place of flags of ``train`` that a comparison does not take."""


def compare(options: CompareOptions, rest: Sequence[str], arguments: Sequence[str]) -> int:
    """Compare, print the verdict and write the reports."""
    models = _models(options, rest)
    if options.baseline is not None and options.baseline not in models:
        raise UserError(f"--baseline {options.baseline} is not among the models: {', '.join(models)}")
    question = Question(
        models=models,
        seeds=_seeds(options.seeds),
        learning_rates=_learning_rates(options.lr, next(iter(models.values()))),
        sweeps=_sweeps(options.sweep or ()),
        budget=options.budget,
        baseline=options.baseline or "",
        costs=options.costs,
        optional=any(ALL in word or FAMILY in word for word in options.models),
        command=" ".join([f"{program()} compare", *map(shell_word, arguments)]),
    )
    folder = Path(options.output) if options.output is not None else COMPARISONS / _name(question)
    _check_folder(folder)
    console = Console(stderr=options.json, quiet=options.json or options.quiet, soft_wrap=True)
    run = executor(options.jobs, options.on)
    folder.mkdir(parents=True, exist_ok=True)
    handle = locks.lock(folder)
    for unfinished in (folder, folder / "tests", folder / PICTURES):
        remove_unfinished(unfinished)
    try:
        with RunsDisplay(console, options.jobs) as display:
            made = run_comparison(question, folder, run, Progress(display.stage, display.ended))
            written = write_reports(made, folder)
    except UserError:
        for path in (folder, COMPARISONS):  # those that are empty: nothing was run
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    except StoppedError as stop:
        say(f"stopped; the same command resumes the comparison in {short(folder)}", file=sys.stderr)
        return 128 + stop.signal
    finally:
        locks.unlock(handle)
    if options.json:
        say(made.model_dump_json())
        return 0
    _show(Console(), made, quiet=options.quiet)
    if not options.quiet:
        say(f"\nwritten: {', '.join(short(file) for file in written)}")
    return 0


def _models(options: CompareOptions, rest: Sequence[str]) -> dict[str, Settings]:
    """The settings of each model by its label; an option of a mechanism is given to the models that have it."""
    patterns = pattern.expand(options.models)
    for group in groups(rest):
        name, _ = parse_flag(group[0])
        if name in OTHER_FLAGS:
            raise UserError(f"compare does not take --{name}; give {OTHER_FLAGS[name]}")
        if name in Output.__dataclass_fields__:
            raise UserError(f"compare does not take --{name}, which is for a single run")
    shared = set(Settings().flat()) | set(ALIASES)
    known = {
        model: shared | set(option_flags(model)) | set(spellings(model)) | set(renamed_flags(model))
        for model in patterns.values()
    }
    anywhere = set().union(*known.values())
    settings = {}
    for label, model in patterns.items():
        words = ["--model", model]
        for group in groups(rest):
            name, _ = parse_flag(group[0])
            if name in known[model] or name not in anywhere:  # what no model has is refused by the parser
                words += group
        settings[label] = parse_train_args(words).settings
    return settings


def _seeds(text: str) -> list[int]:
    """``5`` is the seeds 0 to 4; ``3,4`` are those seeds."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text.replace(" ", "")):
        raise UserError(f"--seeds must be their number, or seeds separated by commas such as 3,4,5; not {text!r}")
    values = [int(value) for value in text.split(",")]
    if len(values) > 1:
        if len(set(values)) < len(values):
            raise UserError(f"--seeds names a seed twice: {text}")
        return values
    if not 1 <= values[0] <= 1_000:
        raise UserError(f"--seeds must be from 1 to 1,000, not {values[0]:,}; a single seed is written as 7,8")
    return list(range(values[0]))


def _learning_rates(text: str, settings: Settings) -> list[float]:
    if text == "default":
        return []
    if text == "sweep":
        return [float(f"{settings.training.learning_rate * factor:.2g}") for factor in TUNING]
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        raise UserError(f"--lr must be sweep, default, or numbers separated by commas; not {text!r}") from None
    if not all(1e-12 <= rate <= 100 for rate in rates) or len(set(rates)) < len(rates):
        raise UserError(f"--lr must have different numbers from 1e-12 to 100, not {text}")
    return rates


def _sweeps(words: Sequence[str]) -> list[Sweep]:
    """``pairs=4,8`` is a sweep over a setting."""
    sweeps: list[Sweep] = []
    for word in words:
        name, equals, values = word.partition("=")
        points = [_value(value) for value in values.split(",")]
        name = ALIASES.get(name.strip("-").replace("-", "_"), name.strip("-").replace("-", "_"))
        if not equals or "" in points:
            raise UserError(f"--sweep must be NAME=VALUE,VALUE such as pairs=4,8,16, not {word!r}")
        if len(set(points)) < len(points):
            raise UserError(f"--sweep {word} has a value twice")
        if name in ("seed", "learning_rate", "model", "task", "data", "threads"):
            raise UserError(f"--sweep cannot change {name}; give --seeds, --lr or --models, or one comparison for each")
        if name in {each.setting for each in sweeps}:
            raise UserError(f"--sweep {name} is given twice; give all values at once")
        sweeps.append(Sweep(name, tuple(points)))
    return sweeps


def _value(text: str) -> Value:
    """A value of a sweep: a number, yes or no, or a word."""
    text = text.strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return {"true": True, "yes": True, "false": False, "no": False}.get(text.lower(), text)
    if not math.isfinite(number):
        raise UserError(f"--sweep needs finite numbers, not {text}")
    return number


def _name(question: Question) -> str:
    """The folder of a question: the same for more seeds, so that a comparison can be extended."""
    first = next(iter(question.models.values()))
    source = first.data.task if first.data.data is None else Path(first.data.data).stem
    content = [
        {label: settings.flat() for label, settings in question.models.items()},
        [list(question.learning_rates), question.budget, question.baseline],
        [[sweep.setting, *map(str, sweep.values)] for sweep in question.sweeps],
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]+", "-", source)[:40]
    return f"{stem or 'data'}-{digest[:6]}"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is not empty and holds no comparison."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    ours = {"runs", "tests", "calibration.json", *FILES}
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if others := sorted(name for name in names if name not in ours and not name.startswith(UNFINISHED)):
        raise UserError(f"--output {folder} holds {others[0]}, which no comparison wrote; give another folder")


def _show(console: Console, made: Results, *, quiet: bool) -> None:
    """Print the verdict and the table of the last point."""
    if not quiet:
        console.print(f"\n{made.question}", soft_wrap=True)
    console.print(f"{'' if quiet else chr(10)}{made.verdict}", soft_wrap=True)
    if quiet:
        return
    for point in made.points:
        console.print("" if point is None else f"\n{made.sweep} {point}")
        table = plain_table("", made.metric_label, "", f"difference from {made.baseline}", "parameters", right=True)
        table.columns[0].justify = "left"
        table.padding = (0, 2)
        for case in made.at(point):
            quality = "failed" if case.quality is None else analysis.with_interval(case.quality)
            table.add_row(f"  {case.label}", quality, case.letters, _difference(case), f"{case.parameters:,}")
        console.print(table)
    if len(made.seeds) > 1:
        console.print(
            f"\n  mean ± 95 % interval over {len(made.seeds)} seeds; mechanisms that share a letter cannot be "
            "distinguished",
            style="dim",
        )


def _difference(case: results.CaseRecord) -> str:
    if case.difference is None:
        return ""
    text = analysis.with_interval(case.difference)
    text = text if text.startswith("−") else f"+{text}"
    return f"{text}{' *' if analysis.is_distinct(case) else ''}"
