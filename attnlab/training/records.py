"""What the files of a run may contain; every config, state, metrics line and result that is read is held to it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from attnlab.files.atomic import JSON_BYTES, open_regular, parse_json, read_bytes
from attnlab.network import Network
from attnlab.network.received import Description, Number, Options, OptionValue, first_error
from attnlab.tasks.base import TaskData
from attnlab.tasks.metrics import CLASS_METRICS, METRICS, VALUE_METRICS
from attnlab.training.settings import RANGES, Settings, field_types
from attnlab.utils.errors import UserError

LINE_BYTES = 2**16
"""The longest line of metrics.jsonl."""
METRICS_BYTES = 2**28
"""The largest metrics.jsonl."""

Text = Annotated[str, Field(max_length=10_000)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _known(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"must be one of {', '.join(METRICS)}")
    return metric


MetricName = Annotated[str, AfterValidator(_known)]
MetricValues = dict[MetricName, Number | None]
_OPTIONS: TypeAdapter[Any] = TypeAdapter(Options, config=ConfigDict(strict=True))


class Record(BaseModel):
    """Strict types, and no field that attnlab does not write."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class _SettingsRecord(Record):
    """The settings by the names of their flags; whatever else there is, is an option of the mechanism."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, OptionValue] = Field(init=False)

    @model_validator(mode="after")
    def _bounded(self) -> _SettingsRecord:
        _OPTIONS.validate_python(self.__pydantic_extra__)
        return self


def _in_range(name: str, value: Any) -> Any:
    low, high = RANGES[name]
    if value is not None and not low <= value <= high:
        raise ValueError(f"must be from {low:,.9g} to {high:,.9g}")
    return value


def _settings_record() -> type[_SettingsRecord]:
    """A field for every setting, of its type and in its range; one that is newer than the file may be missing."""
    made: dict[str, Any] = {}
    for group in fields(Settings):
        for name, kind in field_types(type(getattr(Settings(), group.name))).items():
            ranged = Annotated[kind, AfterValidator(functools.partial(_in_range, name))] if name in RANGES else kind
            made[name] = (ranged, Field(default=None, validate_default=False))
    made |= {name: (made[name][0], ...) for name in ("model", "task", "data", "seed")}  # every attnlab had these
    return create_model("SettingsRecord", __base__=_SettingsRecord, **made)


class Extension(Record):
    """One extension of a run, in config.json."""

    from_step: Count
    epochs: Count | None = None
    epochs_before: Count | None = None
    steps: Count | None = None
    steps_before: Count | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Extension:
        epochs, steps = (self.epochs, self.epochs_before), (self.steps, self.steps_before)
        if sorted([epochs.count(None), steps.count(None)]) != [0, 2]:
            raise ValueError("says how long by epochs, or by steps, before and after")
        return self


def _check_metric(metric: str, network: Description) -> None:
    kind, single = network.outputs[0], network.outputs[2:] in ((), (1,))
    allowed = VALUE_METRICS if kind == "values" else CLASS_METRICS if kind == "classes" and single else ("accuracy",)
    if metric not in allowed and (metric, kind) != ("bits_per_byte", "tokens"):
        raise ValueError(f"{metric} is no metric of the network's outputs")


class Config(Record):
    """config.json."""

    format: int
    attnlab: Text
    torch: Text
    threads: Annotated[int, Field(ge=1, le=65_536)]
    settings: _settings_record()  # type: ignore[valid-type]
    network: Description
    metric: MetricName
    unit: Positive
    encoding: dict[str, Any]
    data_sha256: Hash | None
    sha256: Hash
    id: Hash
    extended: list[Extension] = []
    init_sha256: Hash | None

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        _check_metric(self.metric, self.network)
        unit = "steps" if getattr(self.settings, "epochs", None) is None else "epochs"
        if any(getattr(entry, unit) is None for entry in self.extended):
            raise ValueError(f"extended must count {unit}, as the settings do")
        return self


class MetricsLine(Record):
    """A line of metrics.jsonl."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | None] = Field(init=False)

    step: Count
    epoch: Duration
    train_loss: Number
    validation_loss: Number | None
    learning_rate: Duration
    steps_per_second: Duration
    seconds: Duration

    @model_validator(mode="after")
    def _validation_metrics(self) -> MetricsLine:
        for name in self.__pydantic_extra__:
            if not name.startswith("validation_") or len(name) > 100:
                raise ValueError(f"{name[:60]!a} is no field of a line")
        return self


class BaselineResult(Record):
    """A baseline in result.json."""

    name: Text
    value: Number
    metrics: MetricValues


class ClassResult(Record):
    """A class in result.json."""

    label: Any
    precision: Number
    recall: Number
    f1: Number
    count: Count


class Result(Record):
    """result.json."""

    run: Text
    model: Text
    task: Text
    metric: MetricName
    test: Number
    test_loss: Number | None
    validation: Number
    best_step: Count
    steps: Count
    ended: Literal["finished", "early"]
    seconds: Duration
    parameters: Count
    test_examples: Count
    baselines: Annotated[list[BaselineResult], Field(max_length=1_000)]
    caveat: Text = Field(alias="remark")  # the key in the file, so that older results load
    config: Hash
    metrics: MetricValues
    per_class: list[ClassResult] | None = None
    confusion: list[list[Count]] | None = None
    labels: list[str | int | float | bool | None] | None = None
    notes: list[Text]
    training_seconds: Number  # below zero where a clock was set back
    evaluation_seconds: Number

    @model_validator(mode="after")
    def _fitting(self) -> Result:
        for name, values in (("metrics", self.metrics), *(("baselines", b.metrics) for b in self.baselines)):
            if values.get(self.metric) is None:
                raise ValueError(f"{name} lack a number for {self.metric}")
        if self.confusion is not None:
            count = len(self.confusion)
            sizes = {len(self.labels or []), len(self.per_class or []), *map(len, self.confusion)}
            if sizes != {count}:
                raise ValueError(f"confusion has {count} classes, and labels, per_class or its rows others")
        return self


class NetworkRecord(Record):
    """The description in a file of a network."""

    network: Description
    attnlab: Text | None = None
    encoding: dict[str, Any] | None = None
    metric: MetricName | None = None
    unit: Positive | None = None
    task: Text | None = None
    run: Hash | None = None
    step: Count | None = None
    validation: Number | None = None
    id: Hash | None = None


class TrainedNetworkRecord(NetworkRecord):
    """The description in model.safetensors, and in a file written by ``--save_path``."""

    attnlab: Text
    encoding: dict[str, Any]
    metric: MetricName
    unit: Positive
    task: Text
    run: Hash
    step: Count
    validation: Number

    @model_validator(mode="after")
    def _consistent(self) -> TrainedNetworkRecord:
        _check_metric(self.metric, self.network)
        return self


class StateRecord(Record):
    """The description in state.safetensors."""

    run: Hash
    step: Count
    best: Number | None
    best_step: Count
    evals_since_best: Count = Field(alias="waited")  # the key in the file, so that older checkpoints load
    loss_sum: Number
    loss_count: Count
    seconds: Duration
    evaluation_seconds: Duration
    scaler: dict[str, Number | int]


def check(kind: type[Record], value: Any, source: Path | str, advice: str = "restore it, or train again") -> None:
    """Refuse a value that is no such record.

    Raises:
        UserError: the first field that is wrong, and ``advice``.
    """
    try:
        kind.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{source} is damaged: {first_error(error)}; {advice}") from None


def check_fit(network: Network, task_data: TaskData, source: Path) -> None:
    """Refuse a network that is not for the data that its run names.

    Raises:
        UserError: with what the data give and what the network takes.
    """
    wanted = (task_data.inputs, task_data.outputs, task_data.length)
    found = (network.inputs, network.outputs, network.length)
    if found != wanted:
        raise UserError(f"{source} holds a network for {found}, but its data give {wanted}; restore it, or train again")


@contextlib.contextmanager
def reading_encoding(source: Path) -> Iterator[None]:
    """Turn the errors of a task that reads an encoding into one line: the encoding may come from somebody else.

    Raises:
        UserError: in place of what the encoding's wrong types raise.
    """
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{source} has an encoding that does not fit its task or the data ({reason})") from error


def read(path: Path) -> Any:
    """The JSON in a regular file of a run folder.

    Raises:
        UserError: a file that is missing, too large, a link or no regular file.
        ValueError: no JSON, or more than JSON.
    """
    return parse_json(read_bytes(path, JSON_BYTES))


def write(kind: type[Record], value: dict[str, Any]) -> str:
    """A record as JSON text.

    Raises:
        ValueError: a value that would be refused when it is read.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    kind.model_validate(json.loads(text))
    if len(text.encode(errors="replace")) > JSON_BYTES:
        raise ValueError(f"{kind.__name__} has {len(text):,} characters, more than is read again")
    return text


def read_metrics(path: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill cut short is left out.

    Args:
        path: the file.
        metric: the run's metric, which every line must have on the validation data.

    Raises:
        UserError: the first line that is damaged.
    """
    with open_regular(path) as file:
        lines: list[dict[str, Any]] = []
        try:
            for text in _whole_lines(file):
                line = parse_json(text)
                MetricsLine.model_validate(line)
                if f"validation_{metric}" not in line:
                    raise ValueError(f"validation_{metric} is missing")
                if lines and line["step"] <= lines[-1]["step"]:
                    raise ValueError("its step does not follow that of the line before")
                lines.append(line)
        except ValueError as error:  # pydantic's errors are of this kind
            reason = first_error(error) if isinstance(error, ValidationError) else error
            raise UserError(
                f"{path} is damaged in line {len(lines) + 1}: {reason}; restore it, or train again"
            ) from None
    return lines


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    size = 0
    while line := file.readline(LINE_BYTES + 1):
        size += len(line)
        if not line.endswith(b"\n"):
            if len(line) > LINE_BYTES:
                raise ValueError(f"a line has more than {LINE_BYTES:,} bytes")
            return
        if size > METRICS_BYTES:
            raise ValueError(f"the file has more than {METRICS_BYTES:,} bytes")
        yield line
