"""The content of the files of a run, as pydantic models; every file that is read is validated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_validator

from attnlab.files.atomic import JSON_BYTES, open_regular, parse_json, read_bytes
from attnlab.network.received import Description, Number, Options, OptionValue
from attnlab.tasks.metrics import CLASS_METRICS, METRICS, VALUE_METRICS
from attnlab.training.settings import RANGES, field_types
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

LINE_BYTES = 2**16
"""Largest line of metrics.jsonl."""
METRICS_BYTES = 2**28
"""Largest metrics.jsonl."""

Text = Annotated[str, Field(max_length=10_000)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]


MetricName = Annotated[str, Field(pattern=f"^({'|'.join(METRICS)})$")]
MetricValues = dict[MetricName, Number | None]
_OPTIONS: TypeAdapter[Any] = TypeAdapter(Options, config=ConfigDict(strict=True))


class Record(BaseModel):
    """Strict types and no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class _SettingsRecord(Record):
    """The settings by flag name; other fields are options of the mechanism, or settings under an earlier name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, OptionValue] = Field(init=False)

    @model_validator(mode="after")
    def _bounded(self) -> _SettingsRecord:
        _OPTIONS.validate_python(self.__pydantic_extra__)
        return self


def _settings_record() -> type[_SettingsRecord]:
    """A field for every setting, with its type and range; settings newer than the file may be missing."""
    made: dict[str, Any] = {}
    for types in field_types().values():
        for name, kind in types.items():
            low, high = RANGES.get(name, (None, None))
            made[name] = (Annotated[kind, Field(ge=low, le=high)], None)
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
            raise ValueError("must have the length before and after, in epochs or in steps")
        return self


def _check_metric(metric: str, network: Description) -> None:
    kind, single = network.outputs[0], network.outputs[2:] in ((), (1,))
    allowed = VALUE_METRICS if kind == "values" else CLASS_METRICS if kind == "classes" and single else ("accuracy",)
    if metric not in allowed and (metric, kind) != ("bits_per_byte", "tokens"):
        raise ValueError(f"{metric} is not defined for the network's outputs")


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
                raise ValueError(f"{name[:60]!a} is not a field of a line")
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
                raise ValueError(f"{name} lack a value for {self.metric}")
        if self.confusion is not None:
            count = len(self.confusion)
            sizes = {len(self.labels or []), len(self.per_class or []), *map(len, self.confusion)}
            if sizes != {count}:
                raise ValueError(f"confusion has {count} classes, but labels, per_class or its rows have others")
        return self


class NetworkRecord(Record):
    """The description in a network file."""

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
    """Refuse a value that is not a valid record, with the first wrong field and ``advice``."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{source} is damaged: {first_error(error)}; {advice}") from None


@contextlib.contextmanager
def reading_encoding(source: Path) -> Iterator[None]:
    """Turn errors caused by an invalid encoding, which may come from a received file, into one line."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{source} has an encoding that does not match its task or the data ({reason})") from error


def read(path: Path) -> Any:
    """The JSON content of a regular file of a run folder; raises a ValueError for invalid JSON."""
    return parse_json(read_bytes(path, JSON_BYTES))


def write(kind: type[Record], value: dict[str, Any]) -> str:
    """A record as JSON text; raises a ValueError for a value that would be refused when it is read."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    kind.model_validate(json.loads(text))
    if len(text.encode(errors="replace")) > JSON_BYTES:
        raise ValueError(f"{kind.__name__} has {len(text):,} characters, more than can be read again")
    return text


def read_metrics(path: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each with the run's ``metric``, without an incomplete last line."""
    with open_regular(path) as file:
        lines: list[dict[str, Any]] = []
        try:
            for text in _whole_lines(file):
                line = parse_json(text)
                MetricsLine.model_validate(line)
                if f"validation_{metric}" not in line:
                    raise ValueError(f"validation_{metric} is missing")
                if lines and line["step"] <= lines[-1]["step"]:
                    raise ValueError("its step is not larger than that of the previous line")
                lines.append(line)
        except ValueError as error:  # includes pydantic's errors
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
