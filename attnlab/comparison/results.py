"""The content of results.json: what was asked, held equal, run and found, as pydantic models.

``Results.model_json_schema()`` is its JSON schema. The reports are made from this file alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnlab.files.atomic import parse_json, read_bytes, write_text
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

FORMAT = 1
RESULTS_BYTES = 2**26
FILE = "results.json"

Number = Annotated[float, Field(allow_inf_nan=False)]
Point = int | float | str | bool | None


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())


class IntervalRecord(_Record):
    """A mean over ``n`` seeds and its 95 % interval; no interval for a single seed."""

    mean: Number
    low: Number | None
    high: Number | None
    n: int


class DifferenceRecord(IntervalRecord):
    """A paired difference; ``p`` is corrected by Holm's method for all comparisons with the baseline."""

    p: Number
    detectable: Number | None


class CostRecord(_Record):
    """What a network costs on this machine; None where it could not be measured, with the reason in ``notes``.

    ``spread`` is the largest relative interquartile range of the timings.
    """

    tokens_per_second: Number | None = None
    prefill_ms: Number | None = None
    decode_ms: Number | None = None
    peak_bytes: int | None = None
    length: int
    batch: int
    spread: Number | None = None
    notes: list[str] = []


class CaseRecord(_Record):
    """A mechanism at a point of the sweep.

    ``quality`` is the test metric of the runs that ended; ``letters`` are shared with the cases of the point that
    cannot be distinguished from it.
    """

    label: str
    model: str
    point: Point
    learning_rate: Number
    tried: dict[str, Number | None]
    """The validation metric of each learning rate that was tried; None for a run that failed."""
    steps: int | None
    parameters: int
    embed_dim: int
    mlp_width: int | None
    bytes_per_token: int | None
    bytes_per_sequence: int | None
    quality: IntervalRecord | None
    difference: DifferenceRecord | None
    letters: str
    failed: int
    cost: CostRecord | None = None

    def state_bytes(self, length: int) -> int | None:
        """The bytes that decoding keeps of a sequence; None without a cache."""
        if self.bytes_per_token is None or self.bytes_per_sequence is None:
            return None
        return self.bytes_per_sequence + length * self.bytes_per_token


class TrialRecord(_Record):
    """One run; ``curve`` holds the step and the validation metric of each evaluation."""

    label: str
    point: Point
    seed: int
    learning_rate: Number
    tuning: bool
    run: str
    test: Number | None
    validation: Number | None
    seconds: Number | None
    error: str
    curve: list[tuple[int, Number | None]]


class BaselineRecord(_Record):
    """A simpler method on the same test data, over the same seeds."""

    name: str
    point: Point
    quality: IntervalRecord


class CapacityRecord(_Record):
    """The point of a sweep from which the accuracy is below ``threshold``, interpolated for each seed.

    ``above`` and ``below`` count the seeds that never fall below it and those that start below it; with any of these
    the mean is unknown.
    """

    label: str
    threshold: Number
    at: IntervalRecord | None
    above: int
    below: int


class Results(_Record):
    """Everything that a comparison found."""

    format: Literal[1] = 1
    question: str
    verdict: str
    command: str
    created: str
    machine: str
    source: str
    """The version of attnlab and, in a checkout, the commit."""
    task: str
    task_summary: str
    caveat: str
    data: str | None
    metric: str
    metric_label: str
    higher_is_better: bool
    examples: dict[str, int]
    length: int
    seeds: list[int]
    budget: Literal["params", "time", "flops", "none"]
    held_equal: list[str]
    overlap: Number
    """test / training examples where every seed splits the same examples, else 0."""
    sweep: str | None
    points: list[Point]
    baseline: str
    cases: list[CaseRecord]
    baselines: list[BaselineRecord]
    capacities: list[CapacityRecord]
    trials: list[TrialRecord]
    limits: list[str]
    """What was not run, and what does not follow."""

    def at(self, point: Point) -> list[CaseRecord]:
        """The cases of a point, best first; then those with failed runs, and those without a result."""
        cases = [case for case in self.cases if case.point == point]
        sign = -1 if self.higher_is_better else 1
        return sorted(
            cases,
            key=lambda case: (case.quality is None, case.failed > 0, sign * case.quality.mean if case.quality else 0),
        )

    @property
    def labels(self) -> list[str]:
        """The labels of the cases, in the order of the command."""
        return list(dict.fromkeys(case.label for case in self.cases))


def write(results: Results, folder: Path) -> Path:
    """Write results.json."""
    file = folder / FILE
    write_text(file, results.model_dump_json(indent=1) + "\n")
    return file


def read(file: Path) -> Results:
    """Read results.json; UserError for a file that is missing or damaged."""
    try:
        data = read_bytes(file, RESULTS_BYTES, follow=True)
        parse_json(data)  # refuses deep nesting and repeated keys
        return Results.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{file} is not the result of a comparison: {first_error(error)}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); the same command of attnlab compare writes it again") from None
