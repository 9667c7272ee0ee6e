"""Everything that decides how a run comes out, and nothing else: the same settings, the same weights.

Free of torch, so that ``--help`` is instant. The fields are the command line's flags, their docstrings its help.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import operator
import reprlib
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Suppress, arg

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.catalog.source import REQUIRED, Option
from attnlab.files.data import open_data
from attnlab.utils.errors import UnknownNameError, UserError

Whole = Annotated[int | None, arg(metavar="INT")]
Word = Annotated[str | None, arg(metavar="STR")]
Words = Annotated[list[str] | None, arg(metavar="STR ...")]


@dataclass
class Model:
    """What is trained."""

    model: str = "multihead"
    """The mechanism: a folder of models/ (attnlab models lists them)."""
    embed_dim: int = 64
    """The width of every token."""
    layers: int = 2
    """Blocks of [mechanism, MLP]."""
    mlp: bool = True
    """Whether a block has an MLP after the mechanism."""
    dropout: float = 0.0
    """The probability of dropping an attention weight or an activation, in training only."""
    position_embedding: Literal["learned", "sinusoidal", "none"] = "learned"
    """What is added to each token for its place: learned (up to the length trained on), sinusoidal (no end) or none."""
    options: Suppress[dict[str, Any]] = field(default_factory=dict)
    """The mechanism's own options; on the command line each is a flag."""


@dataclass
class Data:
    """What it is trained on."""

    task: str = "digits"
    """The task (attnlab tasks lists them); with --data, the one that reads such files."""
    data: Word = None
    """Your own file: .txt, .csv, .parquet, .jsonl, or .npz with x and y."""
    target: Word = None
    """The column of --data to predict."""
    target_type: Annotated[Literal["class", "number"] | None, arg(metavar="{class,number}")] = None
    """Whether the target is a class or a number; decided by its values without it."""
    features: Words = None
    """The columns to predict from, separated by spaces; without it all that can be used."""
    ignore: Words = None
    """Columns not to use, separated by spaces."""
    missing: Literal["mean", "error", "drop"] = "mean"
    """Missing values: mean fills them in, error refuses them, drop leaves their rows out."""
    split_by: Annotated[
        Literal["lines", "paragraphs", "position"] | None, arg(metavar="{lines,paragraphs,position}")
    ] = None
    """The unit in which a text is split into training, validation and test data; decided by the text without it."""
    header: bool = True
    """Whether the first line of a table names its columns; without one they are column_1, column_2 ..."""
    seq_length: Whole = None
    """Tokens a sequence; the task's own without it."""
    val_fraction: float = 0.1
    """The part of the training data held out to choose the best model by."""


@dataclass
class Training:
    """How it is trained (AdamW, linear warm-up, then a cosine down to zero)."""

    epochs: Whole = 60
    """Passes over the training data; or give --steps."""
    steps: Whole = None
    """Optimizer steps, instead of --epochs."""
    batch_size: int = 32
    """Sequences a step."""
    learning_rate: Annotated[float, arg(aliases=["--lr"])] = 1e-3
    """The highest rate of the schedule."""
    warmup: float = 0.05
    """The part of all steps over which the rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW's decay of the weight matrices of linear layers; no other parameter decays."""
    grad_clip: Annotated[float, arg(aliases=["--clip"])] = 1.0
    """The largest norm of the gradient; 0 turns clipping off."""
    patience: Whole = None
    """Stop after so many evaluations in a row that are not better than the best; without it never."""
    metric: Annotated[str | None, arg(metavar="STR")] = None
    """The metric that decides which network is the best: accuracy, balanced_accuracy, f1, roc_auc, rmse, mae, r2 ...;
    the task's own without it."""
    class_weight: Annotated[Literal["balanced"] | None, arg(metavar="{balanced}")] = None
    """balanced: weigh every class by the inverse of its frequency in the training data."""
    evaluate_every: Whole = None
    """Steps between evaluations; without it as often as fits in a tenth of the run."""
    validation_examples: Whole = None
    """Validation examples per evaluation; without it as many as fit in a tenth of the run."""
    init_from: Word = None
    """Start from the weights of this run, or of a file written by --save_path."""
    seed: int = 0
    """Decides the split, the first weights, the order and the dropout."""


@dataclass
class Hardware:
    """Where and in what precision."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ...; auto takes the fastest that is there."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16 and float16 compute in mixed precision (autocast)."""
    threads: Whole = None
    """CPU threads; without it one for a small network, which is faster, and PyTorch's choice for a large one."""
    compile: bool = False
    """Compile the network with torch.compile: pays for large networks only."""


@dataclass
class Settings:
    """The four groups together."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    hardware: Hardware = field(default_factory=Hardware)

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name; the mechanism's own options among them."""
        flat = {k: v for group in fields(self) for k, v in asdict(getattr(self, group.name)).items()}
        return flat | flat.pop("options")

    def updated(self, values: dict[str, Any], source: str) -> Settings:
        """These settings with ``values`` (by flag name) in their place; of epochs and steps the new one stands.

        Raises:
            UserError: for a name that is no setting, or a value of another type; ``source`` says where from.
        """
        values = current_names(values, source)
        model = values.get("model", self.model.model)
        values = registry.current_names(model, values)
        own = {option.name: option_type(option, model) for option in mechanism_options(model)}
        groups = {f.name: getattr(self, f.name) for f in fields(self)}
        known = {key: (name, kind) for name, group in groups.items() for key, kind in field_types(type(group)).items()}
        for key, value in values.items():
            if key in own:
                value = _typed(key, value, own[key], source)
                groups["model"] = replace(groups["model"], options={**groups["model"].options, key: value})
            elif key in known:
                name, kind = known[key]
                groups[name] = replace(groups[name], **{key: _typed(key, value, kind, source)})
            else:
                raise UserError(f"{UnknownNameError('setting', key, [*known, *own])} (in {source})")
        said = {name for name in ("epochs", "steps") if values.get(name) is not None}
        if len(said) == 2:
            raise UserError(f"epochs and steps both say how long; give one of them (in {source})")
        if said:
            groups["training"] = replace(groups["training"], **{({"epochs", "steps"} - said).pop(): None})
        return Settings(**groups)


ALIASES = {"lr": "learning_rate", "clip": "grad_clip"}
"""Other names of settings and their flags; ``clip`` is the name of earlier versions."""


def current_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Settings by their current names, and the task by its current name.

    Raises:
        UserError: for a setting that is given under both names.
    """
    renamed = {ALIASES.get(name, name): value for name, value in values.items()}
    if len(renamed) < len(values):
        both = next(f"{name} and {ALIASES[name]}" for name in values if ALIASES.get(name) in values)
        raise UserError(f"{both} are the same setting; give one of them (in {source})")
    if isinstance(renamed.get("task"), str):
        renamed["task"] = tasks.resolve(renamed["task"])
    return renamed


RANGES: dict[str, tuple[float, float]] = {
    "embed_dim": (1, 65_536),
    "layers": (1, 1_000),
    "dropout": (0, 0.99),
    "seq_length": (1, 10_000_000),
    "val_fraction": (0.001, 0.9),
    "epochs": (1, 10_000_000),
    "steps": (1, 100_000_000),
    "batch_size": (1, 10_000_000),
    "learning_rate": (1e-12, 100),
    "warmup": (0, 1),
    "weight_decay": (0, 100),
    "grad_clip": (0, 1_000_000),
    "patience": (1, 1_000_000),
    "evaluate_every": (1, 100_000_000),
    "validation_examples": (1, 1_000_000_000),
    "seed": (0, 999_999_999),
    "threads": (1, 4_096),
}


def check(settings: Settings) -> None:
    """Refuse numbers that mean nothing, and names that do not exist.

    Raises:
        UserError: the first that is wrong, with what is allowed.
    """
    registry.entry(settings.model.model)
    tasks.entry(settings.data.task)
    for name, value in settings.flat().items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if name in RANGES and value is not None and not low <= value <= high:  # NaN is in no range
            raise UserError(f"{name} must be from {low:,.9g} to {high:,.9g}, not {reprlib.repr(value)}")
    if (settings.training.epochs is None) == (settings.training.steps is None):
        raise UserError("how long to train is said by epochs or by steps; give one of them")


def mechanism_options(model: str) -> tuple[Option, ...]:
    """The options of a mechanism that are its own: not the width and dropout that every network has."""
    shared = {f.name for f in fields(Model)}
    return tuple(option for option in registry.entry(model).options if option.name not in shared)


def option_type(option: Option, model: str) -> Any:
    """The type that a constructor's annotation names; of ``str | Positions`` the part that words can say.

    Raises:
        UserError: for one that can be neither a flag nor a setting in a file.
    """
    kinds = option.kinds
    if kinds in ([], [None]):
        raise UserError(
            f"models/{model} has an option of type {option.annotation}, which cannot be a flag; use int, float, bool, "
            "str, Literal[...] or one of these with | None"
        )
    return functools.reduce(operator.or_, kinds)


@dataclass(frozen=True)
class Choices:
    """The answers that an option can have, where they are few; ``open``: other words may do as well."""

    names: tuple[str, ...] = ()
    open: bool = False


def choices_of(option: Option, model: str) -> Choices:
    """Yes and no, or the names of a Literal; in ``Literal[...] | str`` they are not all."""
    kind = option_type(option, model)
    if kind is bool:
        return Choices(("yes", "no"))
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    literals = [part for part in parts if typing.get_origin(part) is Literal]
    if not literals or not all(part is str for part in parts if part not in literals):
        return Choices()
    return Choices(tuple(str(name) for part in literals for name in typing.get_args(part)), open=str in parts)


def defaults(model: str, task: str) -> Settings:
    """The settings of a mechanism on a task when nothing else is said.

    Raises:
        UnknownNameError: for a model or a task that does not exist.
    """
    task = tasks.resolve(task)
    own = {o.name: o.default for o in mechanism_options(model) if o.default is not REQUIRED}
    start = Settings(model=Model(model=model, options=own), data=Data(task=task))
    known = start.flat()  # a task may speak of an option, such as causal, that this mechanism does not have
    said = {name: value for name, value in tasks.entry(task).defaults.items() if name in known}
    return start.updated(said, f"the defaults of {task}")


CONFIG_BYTES = 2**24
"""The largest file of settings that is read."""


def read_config(path: Path) -> dict[str, Any]:
    """Settings by name out of a .json or .toml file; a run's own config.json will do.

    Raises:
        UserError: for a file that is missing or malformed, or says one thing twice.
    """
    try:
        with open_data(path, "--config") as file:
            data = file.read(CONFIG_BYTES + 1)
        if len(data) > CONFIG_BYTES:
            raise UserError(f"--config {path} has {path.stat().st_size:,} bytes; settings are far smaller")
        text = data.decode("utf-8-sig")
        toml = path.suffix.lower() == ".toml"
        found = tomllib.loads(text) if toml else json.loads(text, object_pairs_hook=_once)
        settings = found.get("settings", found) if isinstance(found, dict) else found
        if not isinstance(settings, dict):
            raise UserError(f"--config {path} holds {reprlib.repr(settings)}; expected settings by name")
        return _once([(key.replace("-", "_"), value) for key, value in settings.items()])
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"--config {path} is malformed: it is nested too deeply") from None
    except ValueError as error:  # JSON, TOML and UTF-8 mistakes are all of this kind
        raise UserError(f"--config {path} is malformed: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of pairs whose names all differ: of two, one would be ignored."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is said twice")
    return found


def field_types(group: type) -> dict[str, Any]:
    """The type of every field of a group that is a setting by its own name."""
    hints = typing.get_type_hints(group)
    return {f.name: hints[f.name] for f in fields(group) if f.name != "options"}


def _typed(key: str, value: Any, kind: Any, source: str) -> Any:
    """``value``, or a refusal: a settings file must not smuggle in a word where a number belongs."""
    if not _fits(value, kind):
        raise UserError(f"{key} must be {_kind(kind)}, not {reprlib.repr(value)} (in {source})")
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):  # too large for a float, so too large for its range too
            return float(value)
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of a type; True and False are no numbers, and a whole number is a number."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is not None:
        return isinstance(value, list) and all(_fits(item, parts[0]) for item in value)
    if kind is str:
        return isinstance(value, str) and "\0" not in value and value == value.encode(errors="ignore").decode()
    return type(value) is kind or (kind is float and type(value) is int)


def _kind(kind: Any) -> str:
    """A type in plain words."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_kind, parts))
    if origin is not None:
        return f"a list, each {_kind(parts[0])}"
    plainly = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}
    return plainly.get(kind, "nothing")
