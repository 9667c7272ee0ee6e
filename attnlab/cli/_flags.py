"""The flags of ``train``: the groups of the settings, and the chosen mechanism's options from its constructor."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import arg

from attnlab import tasks
from attnlab.catalog import pattern, registry
from attnlab.catalog.source import REQUIRED, Option
from attnlab.cli._invocation import trainer
from attnlab.cli._parse import parse, rename_flags
from attnlab.cli._split import groups, parse_flag
from attnlab.training.paths import absolute
from attnlab.training.settings import (
    ALIASES,
    Data,
    OptionalStr,
    Settings,
    check,
    current_names,
    defaults,
    flag_name,
    mechanism_options,
    option_flags,
    option_type,
    read_config,
    renamed_flags,
    spellings,
)
from attnlab.utils.errors import UnknownNameError, UserError

DESCRIPTION = """Train an attention mechanism on real data and compare it with baselines.

For example:
  {trainer} --model multihead --embed_dim 128 --num_heads 8 --epochs 12
"""


OPTIONS = "mechanism"
"""The group of the flags with the options of the mechanism; in a pattern each has its own, ``mechanism_NAME``."""
SHARED_OPTIONS = (
    "Options for all layers. A plain flag, such as --num_heads, sets an option of every mechanism that has it."
)

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


TRAIN_FLAGS = {*Settings().flat(), *(f.name for f in dataclasses.fields(Output))}
"""The flags of ``train`` that are not options of a mechanism."""


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
    renamed = renamed_flags(model)
    registry.with_current_names(dict.fromkeys(given_flags(arguments)), renamed)  # refuses both names of an option
    arguments = rename_flags(arguments, RENAMED | renamed)
    _refuse_options_of_other_models(given_flags(arguments), model)
    expanded = _for_each_mechanism(arguments, model)
    given = given_flags(expanded)
    rest, lists = _split_lists(expanded)
    parsed = parse(_interface(base), rest, command=trainer(), description=DESCRIPTION.format(trainer=trainer()))
    options = {
        flag: getattr(getattr(parsed, _group_of(flag, name, option)), option.name)
        for flag, (name, option) in option_flags(model).items()
    }
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
    names = {parse_flag(argument)[0] for argument in arguments if argument.startswith("--")}
    return {ALIASES.get(name, name) for name in names}


def _for_each_mechanism(arguments: Sequence[str], model: str) -> list[str]:
    """The arguments with flags such as ``--num_heads`` repeated for each mechanism of a pattern; see `spellings`.

    A flag of one mechanism takes precedence, wherever it is.
    """
    spelled, given = spellings(model), given_flags(arguments)
    expanded: list[str] = []
    for flag, *values in groups(arguments):
        name, negated = parse_flag(flag)
        if not flag.startswith("--") or name not in spelled:
            expanded += [flag, *values]
            continue
        _, equals, value = flag.partition("=")
        for target in spelled[name]:
            if target not in given:
                expanded += [f"--{flag_name(target, negated=negated)}{equals}{value}", *values]
    return expanded


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag before the whole line can be parsed; the last one counts."""
    value = None
    for i, argument in enumerate(arguments):
        name, equals, after = argument.partition("=")
        if name.replace("-", "_") == f"__{flag}":
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            value = after if equals else None if following.startswith("--") else following
    return value


def peek_words(arguments: Sequence[str], flag: str) -> list[str] | None:
    """The words of a flag that takes several, before the whole line can be parsed; None if it is not given."""
    words: list[str] | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.replace("-", "_") == f"__{flag}":
            words, reading = [value] if equals else [], not equals
        elif argument.startswith("--"):
            reading = False
        elif words is not None and reading:
            words.append(argument)
    return words


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
    task = (
        peek(arguments, "task") or values.get("task") or (tasks.DEFAULT if data is None else tasks.for_file(Path(data)))
    )
    model = peek(arguments, "model") or values.get("model") or "multihead"
    task, values = tasks.resolve(task), current_names(values, str(config))
    base = defaults(model, task)
    _refuse_options_of_other_models(set(values), model)
    return base.updated({**values, "model": model, "task": task}, str(config))


def _interface(base: Settings) -> type[Any]:
    """A dataclass of the groups of flags, with ``base`` as their defaults."""
    options = _option_groups(base.model.model, option_flags(base.model.model), base.model.options)
    values = {"model": base.model, **options, "data": base.data, "training": base.training, "hardware": base.hardware}
    groups = [
        (name, type(value), field(default_factory=partial(copy.copy, value)))
        for name, value in {**values, "output": Output()}.items()
    ]
    return dataclasses.make_dataclass("Train", groups)


def _option_groups(model: str, flags: Mapping[str, tuple[str, Option]], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An instance of a dataclass of options for each group of flags; an option without a default is required."""
    options: dict[str, list[Any]] = {}
    for flag, (name, option) in flags.items():
        kind: Any = Annotated[option_type(option, name), arg(name=flag, help=option.help)]
        default = field(default=defaults.get(flag, tyro.MISSING))
        options.setdefault(_group_of(flag, name, option), []).append((option.name, kind, default))
    groups = {}
    for group, listed in options.items():
        mechanism = dataclasses.make_dataclass("Mechanism", listed)
        name = group.removeprefix(OPTIONS).removeprefix("_")
        mechanism.__doc__ = SHARED_OPTIONS if not name and len(options) > 1 else f"Options for {name or model}."
        groups[group] = mechanism()
    return groups


T = TypeVar("T")


def parse_with_mechanisms(
    options: type[T], arguments: Sequence[str], mechanisms: Sequence[str], *, command: str, description: str
) -> tuple[T, dict[str, dict[str, Any]]]:
    """Parse the flags of a dataclass together with those of several mechanisms, spelled as for ``train``.

    Returns:
        The dataclass, and for each mechanism the options that were given. ``causal`` is left to the dataclass.

    Raises:
        UserError: for an invalid flag or value, and for an option that no mechanism has.
    """
    model = ",".join(dict.fromkeys(mechanisms))
    renamed = renamed_flags(model)
    registry.with_current_names(dict.fromkeys(given_flags(arguments)), renamed)  # refuses both names of an option
    arguments = rename_flags(arguments, renamed)
    names = {f.name for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    _refuse_options_of_other_models(given_flags(arguments), model, names)
    expanded = _for_each_mechanism(arguments, model)
    listed = {flag: pair for flag, pair in option_flags(model).items() if pair[1].name not in names}
    defaults = {flag: option.default for flag, (_, option) in listed.items() if option.default is not REQUIRED}
    group = command.split()[-1]  # a heading of the help
    members: list[Any] = [(group, options)]
    for name, mechanism in _option_groups(model, listed, defaults).items():
        members.append((name, type(mechanism), field(default_factory=partial(copy.copy, mechanism))))
    interface = dataclasses.make_dataclass("Command", members)
    parsed: Any = parse(interface, expanded, command=command, description=description)
    given, values = given_flags(expanded), {name: dict[str, Any]() for name in pattern.mechanisms(model)}
    for flag, (name, option) in listed.items():
        if flag in given:
            values[name][option.name] = getattr(getattr(parsed, _group_of(flag, name, option)), option.name)
    return getattr(parsed, group), values


def _group_of(flag: str, mechanism: str, option: Option) -> str:
    """The group of an option's flag: that of its mechanism in a pattern, else the only one."""
    return OPTIONS if flag == option.name else f"{OPTIONS}_{mechanism}"


def _refuse_options_of_other_models(given: set[str], model: str, others: set[str] = TRAIN_FLAGS) -> None:
    """Name the models that have an option which the chosen ones lack; ``others`` are flags of the command."""
    names = pattern.mechanisms(model)
    known = {option.name for name in names for option in registry.entry(name).options}
    known |= {*option_flags(model), *spellings(model)}
    unknown = given - known - others
    if not unknown:  # reading the source of every mechanism takes time
        return
    for flag in sorted(unknown):
        _refuse_option_of_a_mechanism(flag, names, model)
    models: dict[str, list[str]] = {}
    for name in registry.names():
        with contextlib.suppress(UserError):
            for option in registry.entry(name).options:
                models.setdefault(option.name, []).append(name)
    for flag in sorted(unknown & set(models)):
        lacks = f"{model} has no option" if len(names) == 1 else f"no mechanism of {model} has an option"
        raise UserError(f"{lacks} {flag}; models that have it: {', '.join(models[flag])}")


def _refuse_option_of_a_mechanism(flag: str, names: Sequence[str], model: str) -> None:
    """Explain an unknown ``model.MECHANISM.OPTION``."""
    if not (parts := re.fullmatch(r"model\.(\w+)\.(\w+)", flag)):
        return
    name, option = parts.groups()
    if name not in names:
        known = list(dict.fromkeys([*names, *registry.names()]))
        if name in known:
            raise UserError(f"--{flag} is an option of {name}, but the model is {model}")
        raise UnknownNameError("model", name, known)
    if option == "causal":
        raise UserError(f"causal is one setting of all layers; give --causal in place of --{flag}")
    raise UnknownNameError(f"option of {name}", option, [o.name for o in mechanism_options(name)])


def _refuse_changes(settings: Settings, base: Settings, output: Output, given: set[str]) -> None:
    """A resumed run keeps its settings; only its length may change (see `attnlab.training.extension`)."""
    before, after = base.flat(), absolute(settings.flat())
    moved = set() if before["data"] is None else {"data"}  # its content is compared later
    for name in sorted((given & set(after)) - {"epochs", "steps", "fsdp"} - moved):
        if after[name] != before[name]:
            raise UserError(
                f"{output.resume} was started with {name}={before[name]}, so it cannot resume with {after[name]}; "
                f"leave out --{name}, or start a new run"
            )
    for name in sorted(given & {"run_dir", "overwrite", "config"}):
        raise UserError(f"--resume uses the folder and the settings of the run; leave out --{name}")
