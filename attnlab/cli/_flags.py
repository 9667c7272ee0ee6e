"""The flags of ``train``: the groups of the settings, and the chosen mechanism's options from its constructor."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli._invocation import trainer
from attnlab.cli._parse import parse, rename_flags
from attnlab.training.paths import absolute
from attnlab.training.settings import (
    ALIASES,
    Data,
    OptionalStr,
    Settings,
    check,
    current_names,
    defaults,
    mechanism_options,
    option_type,
    read_config,
)
from attnlab.utils.errors import UserError

DESCRIPTION = """Train an attention mechanism on real data and compare it with baselines.

For example:
  {trainer} --model multihead --embed_dim 128 --num_heads 8 --epochs 200
"""


RENAMED = {"clip": "grad_clip"}
"""Old names of flags, which are accepted for one version."""


@dataclass
class Output:
    """What is saved and printed."""

    run_dir: OptionalStr = None
    """The folder of the run; runs/TASK-MODEL-NNN by default."""
    save_path: OptionalStr = None
    """Also save the trained network to this file: .safetensors, .pth or .pt."""
    overwrite: bool = False
    """Replace the run in --run_dir and the file in --save_path."""
    resume: OptionalStr = None
    """Resume the run in this folder; a larger --epochs or --steps extends it."""
    checkpoint_seconds: float = 10.0
    """Seconds between checkpoints."""
    config: OptionalStr = None
    """Read settings from a .json or .toml file; flags override it."""
    interactive: bool = False
    """Ask for every setting that is not given as a flag."""
    json: bool = False
    """Print the result as JSON and nothing else."""
    quiet: bool = False
    """Print only the result."""


@dataclass
class TrainArgs:
    """A parsed command line: with current names, the settings, the output options, and the names of the flags."""

    arguments: list[str]
    settings: Settings
    output: Output
    given: set[str]


def parse_train_args(arguments: Sequence[str], *, validate: bool = True) -> TrainArgs:
    """Parse what follows ``train`` on the command line, and with ``validate`` check the ranges of the values.

    Raises:
        UserError: for an invalid flag, value or combination.
    """
    base = _base_settings(arguments)
    model = base.model.model
    registry.current_names(model, dict.fromkeys(given_flags(arguments)))  # refuses the old and the new name together
    arguments = rename_flags(arguments, RENAMED | dict(registry.entry(model).renamed))
    given = given_flags(arguments)
    _refuse_options_of_other_models(given, model)
    rest, lists = _split_lists(arguments)
    parsed = parse(_interface(base), rest, command=trainer(), description=DESCRIPTION.format(trainer=trainer()))
    options = dataclasses.asdict(parsed.mechanism) if mechanism_options(model) else {}
    settings = Settings(
        dataclasses.replace(parsed.model, options=options), parsed.data, parsed.training, parsed.hardware
    )
    settings.data.task = tasks.resolve(settings.data.task)
    if {"epochs", "steps"} <= given:
        raise UserError("--epochs and --steps both set the length of the run; give one of them")
    if "epochs" in given:
        settings.training.steps = None
    if "steps" in given:
        settings.training.epochs = None
    output: Output = parsed.output
    for group in (settings.data, settings.training, output):
        for f in dataclasses.fields(group):
            if f.type == "OptionalStr" and peek(arguments, f.name) == "None":  # tyro reads this word as the value None
                setattr(group, f.name, "None")
    for name, values in lists.items():
        setattr(settings.data, name, values)
    if math.isnan(output.checkpoint_seconds) or output.checkpoint_seconds < 0:
        raise UserError(f"checkpoint_seconds must be 0 or more, not {output.checkpoint_seconds}")
    if output.resume is not None:
        _refuse_changes(settings, base, output, given)
    elif validate:
        check(settings)
    return TrainArgs(arguments, settings, output, given)


def given_flags(arguments: Sequence[str]) -> set[str]:
    """The names of the flags among the arguments, with underscores and without ``no_``."""
    names = {a[2:].split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
    names = {name.removeprefix("no_") for name in names}
    return {ALIASES.get(name, name) for name in names}


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag before the whole line can be parsed; the last one counts."""
    value = None
    for i, argument in enumerate(arguments):
        name, equals, after = argument.partition("=")
        if name.replace("-", "_") == f"__{flag}":
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            value = after if equals else None if following.startswith("--") else following
    return value


def _split_lists(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments without the flags that take several values, and the values of these by flag.

    A repeated flag adds to its values; ``--ignore=--x`` gives a value that starts with two hyphens.
    """
    names = {f.name for f in dataclasses.fields(Data) if f.type == "OptionalStrs"}
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    values: list[str] | None = None  # of the flag that is being read
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") or argument == "-h":
            listed = name.replace("-", "_") in names
            values = lists.setdefault(name.replace("-", "_"), []) if listed else None
            if values is not None and equals:
                values.append(value)
        elif values is not None:
            values.append(argument)
        if values is None:
            rest.append(argument)
    for name, collected in lists.items():
        if not collected and not {"-h", "--help"} & set(arguments):
            raise UserError(f"--{name} needs at least one name; write one that starts with a hyphen as --{name}=NAME")
    return rest, lists


def _base_settings(arguments: Sequence[str]) -> Settings:
    """The settings that the flags change: those of a run, of a file, or the defaults of the model and the task."""
    resume = peek(arguments, "resume")
    if resume is not None:
        from attnlab.training.runs import Run  # imports torch, which --help must not

        return Run.open(Path(resume)).settings
    config = peek(arguments, "config")
    values = {} if config is None else read_config(Path(config))
    for name in ("model", "task", "data"):
        if not isinstance(values.get(name, ""), str | None):
            raise UserError(f"{name} must be a string, not {values[name]!r} (in {config})")
    data = peek(arguments, "data") or values.get("data")
    task = peek(arguments, "task") or values.get("task") or ("digits" if data is None else tasks.for_file(Path(data)))
    model = peek(arguments, "model") or values.get("model") or "multihead"
    task, values = tasks.resolve(task), current_names(values, str(config))
    base = defaults(model, task)
    _refuse_options_of_other_models(set(values), model)
    return base.updated({**values, "model": model, "task": task}, str(config))


def _interface(base: Settings) -> type[Any]:
    """A dataclass of the groups of flags, with ``base`` as their defaults."""
    model = base.model.model
    values = {"model": base.model, "data": base.data, "training": base.training, "hardware": base.hardware}
    options = [
        (
            option.name,
            Annotated[option_type(option, model), arg(help=option.help)],
            field(default=base.model.options.get(option.name, tyro.MISSING)),
        )
        for option in mechanism_options(model)
    ]
    if options:
        mechanism = dataclasses.make_dataclass("Mechanism", options)
        mechanism.__doc__ = f"Options for {model}."
        values = {"model": base.model, "mechanism": mechanism(), **values}
    groups = [
        (name, type(value), field(default_factory=partial(copy.copy, value)))
        for name, value in {**values, "output": Output()}.items()
    ]
    return dataclasses.make_dataclass("Train", groups)


def _refuse_options_of_other_models(given: set[str], model: str) -> None:
    """Name the models that have an option which the chosen one lacks."""
    known = {option.name for option in registry.entry(model).options}
    unknown = given - known - set(Settings().flat()) - {f.name for f in dataclasses.fields(Output)}
    if not unknown:  # reading the source of every mechanism takes time
        return
    models: dict[str, list[str]] = {}
    for name in registry.names():
        with contextlib.suppress(UserError):
            for option in registry.entry(name).options:
                models.setdefault(option.name, []).append(name)
    for flag in sorted(unknown & set(models)):
        raise UserError(f"{model} has no option {flag}; models that have it: {', '.join(models[flag])}")


def _refuse_changes(settings: Settings, base: Settings, output: Output, given: set[str]) -> None:
    """A resumed run keeps its settings; only its length may change (see `attnlab.training.extension`)."""
    before, after = base.flat(), absolute(settings.flat())
    moved = set() if before["data"] is None else {"data"}  # its content is compared later
    for name in sorted((given & set(after)) - {"epochs", "steps"} - moved):
        if after[name] != before[name]:
            raise UserError(
                f"{output.resume} was started with {name}={before[name]}, so it cannot resume with {after[name]}; "
                f"leave out --{name}, or start a new run"
            )
    for name in sorted(given & {"run_dir", "overwrite", "config"}):
        raise UserError(f"--resume uses the folder and the settings of the run; leave out --{name}")
