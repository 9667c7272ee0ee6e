"""The settings of a run: everything that decides its result, and nothing else.

The fields are the flags of the command line, and their docstrings are its help. Neither torch nor pydantic is imported
with this module, so that ``--help`` stays fast.
"""

from __future__ import annotations

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
from attnlab.catalog import pattern, registry
from attnlab.catalog.source import REQUIRED, Option
from attnlab.files.data import open_data
from attnlab.utils.errors import UnknownNameError, UserError

OptionalInt = Annotated[int | None, arg(metavar="INT")]
OptionalStr = Annotated[str | None, arg(metavar="STR")]
OptionalStrs = Annotated[list[str] | None, arg(metavar="STR ...")]


@dataclass
class Model:
    """The network."""

    model: str = "multihead"
    """The mechanism (attnlab models lists them), or a pattern of several over the layers: "3*linear,multihead"."""
    embed_dim: int = 64
    """Width of the token embeddings."""
    layers: int = 2
    """Number of blocks, each an attention layer and an MLP; at least one period of a pattern of mechanisms."""
    mlp: bool = True
    """Whether each block has an MLP after its attention layer."""
    mlp_width: OptionalInt = None
    """Width of the hidden layer of each MLP; by default four times the embedding width."""
    init_std: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Standard deviation of the initial weights of linear layers, as in GPT-2 (0.02); by default 1/sqrt(fan_in)."""
    dropout: float = 0.0
    """Dropout probability of attention weights and activations, in training only."""
    position_embedding: Literal["learned", "sinusoidal", "none"] = "learned"
    """Absolute position embedding: learned (up to the training length), sinusoidal (unlimited) or none."""
    options: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Options of the mechanisms by the name of their flag; see `option_flags`."""


@dataclass
class Data:
    """The data."""

    task: str = tasks.DEFAULT
    """The task (attnlab tasks lists them); with --data, the task that reads such files by default."""
    data: OptionalStr = None
    """Your own file: .txt, .csv, .parquet, .jsonl, or .npz with x and y."""
    target: OptionalStr = None
    """The column of --data to predict."""
    target_type: Annotated[Literal["class", "number"] | None, arg(metavar="{class,number}")] = None
    """Whether the target is a class or a number; by default decided by its values."""
    features: OptionalStrs = None
    """The columns to predict from, separated by spaces; by default all that can be used."""
    ignore: OptionalStrs = None
    """Columns to leave out, separated by spaces."""
    missing: Literal["mean", "error", "drop"] = "mean"
    """Missing values: mean fills them in, error refuses them, drop removes their rows."""
    split_by: Annotated[
        Literal["lines", "paragraphs", "position"] | None, arg(metavar="{lines,paragraphs,position}")
    ] = None
    """The unit in which a text is split into training, validation and test data; by default decided by the text."""
    header: bool = True
    """Whether the first line of a table names its columns; otherwise they are column_1, column_2 ..."""
    seq_length: OptionalInt = None
    """Tokens per sequence; the default depends on the task."""
    test_length: OptionalInt = None
    """Tokens per sequence of the test data, for length generalization; by default seq_length."""
    pairs: OptionalInt = None
    """Key-value pairs per sequence, for the recall tasks."""
    vocabulary: OptionalInt = None
    """Number of different symbols, for tasks with random symbols."""
    noise: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Fraction of the tokens that are noise, for tasks with noise."""
    val_fraction: float = 0.1
    """Fraction of the training data used for validation."""


@dataclass
class Training:
    """Training: AdamW with linear warm-up and cosine decay to zero."""

    epochs: OptionalInt = 60
    """Passes over the training data; or give --steps."""
    steps: OptionalInt = None
    """Optimizer steps, instead of --epochs."""
    batch_size: int = 32
    """Sequences per step."""
    learning_rate: Annotated[float, arg(aliases=["--lr"])] = 1e-3
    """Peak learning rate of the schedule."""
    warmup: float = 0.05
    """Fraction of all steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW weight decay of the weight matrices of linear layers; other parameters do not decay."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    patience: OptionalInt = None
    """Stop after this many evaluations without improvement; by default never."""
    metric: Annotated[str | None, arg(metavar="STR")] = None
    """The validation metric that selects the best network, such as accuracy or rmse; by default that of the task."""
    class_weight: Annotated[Literal["balanced"] | None, arg(metavar="{balanced}")] = None
    """balanced: weight each class by the inverse of its frequency in the training data."""
    evaluate_every: OptionalInt = None
    """Steps between evaluations; by default evaluation takes about a tenth of the run."""
    validation_examples: OptionalInt = None
    """Validation examples per evaluation; by default as many as fit in a tenth of the run."""
    snapshots: int = 0
    """Networks to keep besides the best: at this many steps on a logarithmic scale, from 0 to the last; at most 100."""
    init_from: OptionalStr = None
    """Start from the parameters of this run, or of a file written by --save_path."""
    seed: int = 0
    """Random seed of the split, the initial parameters, the order of the examples and dropout."""


@dataclass
class Hardware:
    """Device and precision."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps ...; auto takes the fastest that is available."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """bfloat16 and float16 compute in mixed precision (autocast)."""
    threads: OptionalInt = None
    """CPU threads; by default one for a small network, which is faster, and PyTorch's default for a large one."""
    compile: bool = False
    """Compile the network with torch.compile: faster for large networks only."""
    fsdp: bool = False
    """Shard parameters over the processes that torchrun started (FSDP2); by default each holds all of them (DDP)."""


@dataclass
class Settings:
    """All settings, in four groups."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    hardware: Hardware = field(default_factory=Hardware)

    def flat(self) -> dict[str, Any]:
        """Every setting by the name of its flag, including the options of the mechanism."""
        flat = {k: v for group in fields(self) for k, v in asdict(getattr(self, group.name)).items()}
        return flat | flat.pop("options")

    def updated(self, values: dict[str, Any], source: str) -> Settings:
        """A copy with ``values`` (by flag name); ``epochs`` replaces ``steps``, and the other way round.

        Unknown names and values of another type are refused; the message names ``source``.
        """
        values = current_names(values, source)
        model = values.get("model", self.model.model)
        values = for_each_mechanism(model, registry.with_current_names(values, renamed_flags(model)))
        known = self._types(model)
        checked = {}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{UnknownNameError('setting', name, known)} (in {source})")
            checked[name] = _validated(name, value, known[name], source)
        durations = {name for name in ("epochs", "steps") if values.get(name) is not None}
        if len(durations) == 2:
            raise UserError(f"epochs and steps both set the training length; give one of them (in {source})")
        if durations:
            checked[({"epochs", "steps"} - durations).pop()] = None
        return self._replaced(checked)

    def _types(self, model: str) -> dict[str, Any]:
        """The type of every setting, including the options of the mechanisms."""
        options = {flag: option_type(option, name) for flag, (name, option) in option_flags(model).items()}
        return functools.reduce(operator.or_, field_types().values()) | options

    def _replaced(self, values: dict[str, Any]) -> Settings:
        """A copy with ``values``; names that are no fields are options of the mechanisms."""
        groups, options = {}, dict(values)
        for name, kinds in field_types().items():
            groups[name] = replace(getattr(self, name), **{n: options.pop(n) for n in kinds if n in options})
        groups["model"] = replace(groups["model"], options={**groups["model"].options, **options})
        return Settings(**groups)


ALIASES = {"lr": "learning_rate", "clip": "grad_clip"}
"""Other names of settings and their flags; ``clip`` is the name of earlier versions."""


def current_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Settings by their current names, each given once, and the task by its current name."""
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
    "mlp_width": (1, 1_000_000),
    "init_std": (0, 100),
    "dropout": (0, 0.99),
    "seq_length": (1, 10_000_000),
    "test_length": (1, 10_000_000),
    "pairs": (1, 1_000_000),
    "vocabulary": (2, 1_000_000),
    "noise": (0, 0.99),
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
    "snapshots": (0, 100),
    "seed": (0, 999_999_999),
    "threads": (1, 4_096),
}


def check(settings: Settings) -> None:
    """Refuse values out of range and unknown names."""
    layers = pattern.period(settings.model.model)
    for name in layers:
        registry.entry(name)
    tasks.entry(settings.data.task)
    for name, value in settings.flat().items():
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if name in RANGES and value is not None and not low <= value <= high:  # NaN is in no range
            raise UserError(f"{name} must be from {low:,.9g} to {high:,.9g}, not {reprlib.repr(value)}")
    if settings.model.layers < len(layers):
        raise UserError(
            f"layers ({settings.model.layers}) must be at least {len(layers)}, the layers in one period of "
            f"{settings.model.model}"
        )
    if settings.model.mlp_width is not None and not settings.model.mlp:
        raise UserError("mlp_width has no effect without an MLP; leave out --mlp_width or --no_mlp")
    if (settings.training.epochs is None) == (settings.training.steps is None):
        raise UserError("the training length is set by epochs or by steps; give one of them")


def mechanism_options(model: str) -> tuple[Option, ...]:
    """The options of a mechanism, without the width and dropout that every network has."""
    shared = {f.name for f in fields(Model)}
    return tuple(option for option in registry.entry(model).options if option.name not in shared)


def option_flags(model: str) -> dict[str, tuple[str, Option]]:
    """The mechanism and the option that each flag sets.

    The flags of a single mechanism are the names of its options. Those of a pattern are ``model.MECHANISM.OPTION``, and
    ``causal``, which is one setting of all layers.
    """
    names = pattern.mechanisms(model)
    if len(names) == 1:
        return {option.name: (names[0], option) for option in mechanism_options(names[0])}
    flags = {}
    by_default = sorted(names, key=lambda name: registry.entry(name).card.always_causal)  # these have the default True
    flags["causal"] = next((n, o) for n in by_default for o in mechanism_options(n) if o.name == "causal")
    for name in names:
        flags |= {f"model.{name}.{o.name}": (name, o) for o in mechanism_options(name) if o.name != "causal"}
    return flags


def flag_name(name: str, *, negated: bool = False) -> str:
    """The flag of a setting without hyphens: ``bias`` negated is ``no_bias``, ``model.linear.bias`` is
    ``model.linear.no_bias``.
    """
    before, dot, last = name.rpartition(".")
    return f"{before}{dot}no_{last}" if negated else name


def spellings(model: str) -> dict[str, list[str]]:
    """The flags that another spelling sets.

    In a pattern, the name of an option stands for it in every mechanism that has it. For a single mechanism,
    ``model.MECHANISM.OPTION`` stands for the option.
    """
    spelled: dict[str, list[str]] = {}
    for flag, (name, option) in option_flags(model).items():
        if flag != option.name:
            spelled.setdefault(option.name, []).append(flag)
        elif option.name != "causal":
            spelled[f"model.{name}.{option.name}"] = [flag]
    return spelled


def for_each_mechanism(model: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values by flag, other `spellings` replaced by the flags that they set; a flag given itself takes precedence."""
    spelled = spellings(model)
    shared = {flag: value for name, value in values.items() for flag in spelled.get(name, ())}
    return shared | {name: value for name, value in values.items() if name not in spelled}


def renamed_flags(model: str) -> dict[str, str]:
    """The current names of flags by their old ones, which are accepted for one version."""
    renamed: dict[str, str] = {}
    current = {option.name for _, option in option_flags(model).values()}
    for name in pattern.mechanisms(model):
        for old, new in registry.entry(name).renamed.items():
            renamed[f"model.{name}.{old}"] = f"model.{name}.{new}"
            if old not in current:  # by another mechanism of the pattern
                renamed[old] = new
    return renamed


def option_type(option: Option, model: str) -> Any:
    """The type of an option on the command line, which must be simple: of ``str | Positions`` only ``str``."""
    kinds = option.kinds
    if kinds in ([], [None]):
        raise UserError(
            f"models/{model} has an option of type {option.annotation}, which cannot be a flag; use int, float, bool, "
            "str, Literal[...] or one of these with | None"
        )
    return functools.reduce(operator.or_, kinds)


@dataclass(frozen=True)
class Choices:
    """The possible values of an option, if they are few; with ``open``, other strings are valid too."""

    names: tuple[str, ...] = ()
    open: bool = False


def choices_of(option: Option, model: str) -> Choices:
    """The possible values of an option: yes and no, or the names of a Literal."""
    kind = option_type(option, model)
    if kind is bool:
        return Choices(("yes", "no"))
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    literals = [part for part in parts if typing.get_origin(part) is Literal]
    if not literals or not all(part is str for part in parts if part not in literals):
        return Choices()
    return Choices(tuple(str(name) for part in literals for name in typing.get_args(part)), open=str in parts)


def defaults(model: str, task: str) -> Settings:
    """The default settings of a mechanism or a pattern on a task; at least as many layers as one period has."""
    task = tasks.resolve(task)
    options = {flag: o.default for flag, (_, o) in option_flags(model).items() if o.default is not REQUIRED}
    start = Settings(model=Model(model=model, options=options), data=Data(task=task))
    known = start.flat()  # a task may set an option, such as causal, that this mechanism does not have
    changed = for_each_mechanism(model, tasks.entry(task).defaults)
    settings = start._replaced({name: value for name, value in changed.items() if name in known})
    settings.model.layers = max(settings.model.layers, len(pattern.period(model)))
    return settings


CONFIG_BYTES = 2**24
"""Largest file of settings, in bytes."""


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a .json or .toml file, or in the config.json of a run."""
    try:
        with open_data(path, "--config") as file:
            data = file.read(CONFIG_BYTES + 1)
        if len(data) > CONFIG_BYTES:
            raise UserError(f"--config {path} has {path.stat().st_size:,} bytes; settings are far smaller")
        text = data.decode("utf-8-sig")
        toml = path.suffix.lower() == ".toml"
        content = tomllib.loads(text) if toml else json.loads(text, object_pairs_hook=_once)
        settings = content.get("settings", content) if isinstance(content, dict) else content
        if not isinstance(settings, dict):
            raise UserError(f"--config {path} holds {reprlib.repr(settings)}; expected settings by name")
        return _once([pair for key, value in settings.items() for pair in _by_flag(key.replace("-", "_"), value)])
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"--config {path} is malformed: it is nested too deeply") from None
    except ValueError as error:  # JSON, TOML and UTF-8 mistakes are all of this kind
        raise UserError(f"--config {path} is malformed: {error}") from None


def _by_flag(key: str, value: Any) -> list[tuple[str, Any]]:
    """A setting by its flag; a table with the name of a mechanism holds options of that mechanism."""
    if not isinstance(value, dict) or key not in registry.names():
        return [(key, value)]
    return [(f"model.{key}.{name.replace('-', '_')}", each) for name, each in value.items()]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of pairs; a repeated name is an error, because one value would be ignored."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is set twice")
    return values


@functools.cache
def field_types() -> dict[str, dict[str, Any]]:
    """The types of the settings in each group."""
    groups = {group.name: type(getattr(Settings(), group.name)) for group in fields(Settings)}
    hints = {name: typing.get_type_hints(group) for name, group in groups.items()}
    return {name: {n: kind for n, kind in types.items() if n != "options"} for name, types in hints.items()}


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _validated(name: str, value: Any, kind: Any, source: str) -> Any:
    """``value`` if it has the type ``kind``; an integer is accepted for a float."""
    from pydantic import ValidationError

    from attnlab.utils.validation import expected

    if kind is float and type(value) is int and abs(value) > 1e300:
        return value  # too large for a float, so `check` refuses it
    try:
        if isinstance(value, str) and ("\0" in value or value != value.encode(errors="ignore").decode()):
            raise UserError(f"{name} must be a valid string, not {reprlib.repr(value)} (in {source})")
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{name} must be {expected(error)}, not {reprlib.repr(value)} (in {source})") from None
