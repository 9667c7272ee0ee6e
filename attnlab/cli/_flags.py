"""The flags of ``train``: the settings' own groups, and the chosen mechanism's options from its constructor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.cli._parse import parse
from attnlab.cli._program import trainer
from attnlab.training.paths import absolute
from attnlab.training.settings import (
    ALIASES,
    Data,
    Hardware,
    Model,
    Settings,
    Training,
    Word,
    check,
    current_names,
    defaults,
    mechanism_options,
    option_type,
    read_config,
)
from attnlab.utils.errors import UserError

DESCRIPTION = """Train an attention mechanism on real data, beside honest baselines.

For example:
  {trainer} --model multihead --embed_dim 128 --num_heads 8 --epochs 200
"""


@dataclass
class Output:
    """What is kept and shown."""

    run_dir: Word = None
    """The run's folder; without it runs/TASK-MODEL-NNN."""
    save_path: Word = None
    """Save the trained network here too: .safetensors, .pth or .pt."""
    overwrite: bool = False
    """Replace the run in --run_dir, and the file in --save_path."""
    resume: Word = None
    """Resume the run in this folder; more --epochs or --steps than it has extend it."""
    checkpoint_seconds: float = 10.0
    """Seconds between two checkpoints."""
    config: Word = None
    """Read settings from a .json or .toml file; flags given beside it win."""
    interactive: bool = False
    """Ask for what is not given as a flag."""
    json: bool = False
    """Print the result as JSON, and nothing else."""
    quiet: bool = False
    """Print the result alone."""


@dataclass
class Asked:
    """A command line, understood: the settings, the output, and which flags were really given."""

    settings: Settings
    output: Output
    given: set[str]


def understand(arguments: Sequence[str], *, validate: bool = True) -> Asked:
    """Read the flags of ``train``.

    Raises:
        UserError: for anything that cannot be; ``validate`` False leaves the values' ranges to the asker.
    """
    given = given_flags(arguments)
    base = _base(arguments)
    model = base.model.model
    _refuse_foreign(given, model)
    words, lists = _lists(arguments)
    parsed = parse(_interface(base), words, command=trainer(), description=DESCRIPTION.format(trainer=trainer()))
    own = {} if not mechanism_options(model) else dataclasses.asdict(parsed.mechanism)
    settings = Settings(dataclasses.replace(parsed.model, options=own), parsed.data, parsed.training, parsed.hardware)
    if {"epochs", "steps"} <= given:
        raise UserError("--epochs and --steps both say how long; give one of them")
    if "epochs" in given:
        settings.training.steps = None
    if "steps" in given:
        settings.training.epochs = None
    output: Output = parsed.output
    for group in (settings.data, settings.training, output):
        for f in dataclasses.fields(group):
            if f.type == "Word" and peek(arguments, f.name) == "None":  # tyro takes it for the absence of a word
                setattr(group, f.name, "None")
    for name, listed in lists.items():
        setattr(settings.data, name, listed)
    if output.checkpoint_seconds != output.checkpoint_seconds or output.checkpoint_seconds < 0:
        raise UserError(f"checkpoint_seconds must be 0 or more, not {output.checkpoint_seconds}")
    if output.resume is not None:
        _refuse_changes(settings, base, output, given)
    elif validate:
        check(settings)
    return Asked(settings, output, given)


def given_flags(arguments: Sequence[str]) -> set[str]:
    """The names of the flags among the words, spelled with underscores; ``no_`` is left away."""
    names = {w[2:].split("=")[0].replace("-", "_") for w in arguments if w.startswith("--")}
    names = {name.removeprefix("no_") for name in names}
    return {ALIASES.get(name, name) for name in names}


def _lists(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments without the flags that take several words, and the words of these.

    A flag that is repeated adds to its words; ``--ignore=--x`` gives one that starts with two hyphens.

    Raises:
        UserError: for a flag without a word.
    """
    names = {f.name for f in dataclasses.fields(Data) if f.type == "Words"}
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    words: list[str] | None = None  # those of the list that is read at the moment
    for word in arguments:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") or word == "-h":
            listed = name.replace("-", "_") in names
            words = lists.setdefault(name.replace("-", "_"), []) if listed else None
            if words is not None and equals:
                words.append(value)
        elif words is not None:
            words.append(word)
        if words is None:
            rest.append(word)
    for name, found in lists.items():
        if not found and not {"-h", "--help"} & set(arguments):
            raise UserError(f"--{name} needs at least one name; write one that starts with a hyphen as --{name}=NAME")
    return rest, lists


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, before the flags that depend on it are known; the last one counts."""
    found = None
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.replace("-", "_") == f"__{flag}":
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            found = value if equals else None if following.startswith("--") else following
    return found


def _base(arguments: Sequence[str]) -> Settings:
    """The settings that the flags start from: a run's, a file's, or the defaults of model and task."""
    resume = peek(arguments, "resume")
    if resume is not None:
        from attnlab.training.runs import Run  # imports torch, which plain --help must not

        return Run.open(Path(resume)).settings
    config = peek(arguments, "config")
    said = {} if config is None else read_config(Path(config))
    for name in ("model", "task", "data"):
        if not isinstance(said.get(name, ""), str | None):
            raise UserError(f"{name} must be a text, not {said[name]!r} (in {config})")
    data = peek(arguments, "data") or said.get("data")
    task = peek(arguments, "task") or said.get("task") or ("digits" if data is None else tasks.for_file(Path(data)))
    model = peek(arguments, "model") or said.get("model") or "multihead"
    task = tasks.resolve(task)
    said = current_names(said, str(config))
    base = defaults(model, task)
    _refuse_foreign(set(said), model)
    return base.updated({**said, "model": model, "task": task}, str(config))


def _interface(base: Settings) -> type[Any]:
    """A dataclass of groups whose defaults are ``base``."""
    groups: list[tuple[str, Any, Any]] = [("model", Model, field(default_factory=lambda: base.model))]
    options = mechanism_options(base.model.model)
    if options:
        own = dataclasses.make_dataclass(
            "Mechanism",
            [
                (
                    o.name,
                    Annotated[option_type(o, base.model.model), arg(help=o.help)],
                    field(default=base.model.options.get(o.name, tyro.MISSING)),
                )
                for o in options
            ],
        )
        own.__doc__ = f"Options for {base.model.model}."
        groups.append(("mechanism", own, field(default_factory=own)))
    groups += [
        ("data", Data, field(default_factory=lambda: base.data)),
        ("training", Training, field(default_factory=lambda: base.training)),
        ("hardware", Hardware, field(default_factory=lambda: base.hardware)),
        ("output", Output, field(default_factory=Output)),
    ]
    return dataclasses.make_dataclass("Train", groups)


def _refuse_foreign(given: set[str], model: str) -> None:
    """Say which mechanism does have an option that the chosen one lacks."""
    here = {option.name for option in registry.entry(model).options}
    foreign = given - here - set(Settings().flat()) - {f.name for f in dataclasses.fields(Output)}
    if not foreign:  # saves reading the source of every mechanism
        return
    elsewhere: dict[str, list[str]] = {}
    for name in registry.names():
        try:
            for option in registry.entry(name).options:
                elsewhere.setdefault(option.name, []).append(name)
        except UserError:
            continue
    for flag in sorted(foreign & set(elsewhere)):
        raise UserError(f"{model} has no option {flag}; models that have it: {', '.join(elsewhere[flag])}")


def _refuse_changes(settings: Settings, base: Settings, output: Output, given: set[str]) -> None:
    """A resumed run keeps its settings; it can only be trained for longer (see `attnlab.training.extension`)."""
    was, now = base.flat(), absolute(settings.flat())
    moved = set() if was["data"] is None else {"data"}  # the content is compared later
    for name in sorted((given & set(now)) - {"epochs", "steps"} - moved):
        if now[name] != was[name]:
            raise UserError(
                f"{output.resume} was started with {name}={was[name]}, so it cannot go on with {now[name]}; "
                f"leave --{name} out, or start a new run"
            )
    for name in sorted(given & {"run_dir", "overwrite", "config"}):
        raise UserError(f"--resume goes on in the run's own folder with its own settings; leave --{name} out")
