"""The results of ``attnlab bench``: what was asked, the machine, and one group of rows per case."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import TypeAdapter, ValidationError

from attnlab.bench.crossover import crossing
from attnlab.bench.machine import Machine
from attnlab.bench.measurement import Group, Row
from attnlab.bench.workloads import Phase
from attnlab.files.atomic import JSON_BYTES, parse_json, read_bytes, write_text
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

FILE = "results.json"
FORMAT = 1

NOISE = 0.05
"""How far from 1 the quartiles of the control may be without a warning."""
BUSY = 0.25
"""The load average per CPU, before a measurement, that leads to a warning."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        models: the pattern of each model, by label.
        options: options of mechanisms that were given, by mechanism.
        lengths: tokens per sequence; in decoding those that are cached.
        batch_sizes: sequences per batch.
        phases: of training, prefill and decode.
        embed_dim: the width of the tokens.
        layers: layers of each model, at least one period of a pattern.
        causal: whether the layers are causal.
        threads: CPU threads.
        device: the device, such as ``cpu``.
        precision: of the forward passes, as for training.
        budget: the seconds for all rounds together; each case has at least ``rounds`` rounds.
        rounds: the least number of rounds.
        peers: the packages of other libraries that are compared with.
        memory: whether peak memory is measured.
    """

    models: dict[str, str]
    options: dict[str, dict[str, Any]]
    lengths: list[int]
    batch_sizes: list[int]
    phases: list[Phase]
    embed_dim: int
    layers: int
    causal: bool
    threads: int
    device: str
    precision: str
    budget: float
    rounds: int
    peers: list[str]
    memory: bool

    @property
    def cases(self) -> int:
        """The number of cases."""
        return len(self.lengths) * len(self.batch_sizes) * len(self.phases)


@dataclass
class Result:
    """The content of results.json; ``finished`` is False if the measurement was stopped."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    plan: Plan
    machine: Machine
    groups: list[Group] = field(default_factory=list)
    finished: bool = False
    format: int = FORMAT

    def write(self, folder: Path) -> Path:
        """Write results.json."""
        file = folder / FILE
        write_text(file, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return file

    @property
    def warnings(self) -> list[str]:
        """Why the times may be wrong, one line each."""
        lines = []
        load, cpus = self.machine.load_before, self.machine.cpus
        if load is not None and load > BUSY * cpus:
            lines.append(f"the load average was {load:.2f} on {cpus} CPUs before: other processes disturb the times")
        noisy = [g for g in self.groups if g.control and not _is_near_one(g.control.lower, g.control.upper)]
        if noisy:
            cases = "; ".join(f"{case(g)} {g.control}" for g in noisy[:3]) + ("; ..." if len(noisy) > 3 else "")
            lines.append(
                f"the control is far from 1 in {len(noisy)} of {len(self.groups)} cases, so smaller differences are "
                f"noise ({cases}); measure again on an idle machine, with a larger --budget"
            )
        return lines


class Crossover(NamedTuple):
    """Where ``model`` becomes faster than ``baseline``: from ``length`` tokens on."""

    phase: Phase
    batch_size: int
    model: str
    baseline: str
    length: float
    is_first: bool
    """Whether it is faster at every measured length."""


def curves(groups: list[Group]) -> dict[tuple[Phase, int], dict[str, dict[int, Row]]]:
    """The measured rows by phase and batch size, model, and length."""
    found: dict[tuple[Phase, int], dict[str, dict[int, Row]]] = {}
    for group in groups:
        models = found.setdefault((group.phase, group.batch_size), {})
        for row in group.rows:
            models.setdefault(row.model, {})[group.length] = row
    return found


def crossovers(groups: list[Group]) -> Iterator[Crossover]:
    """The lengths from which a model is faster than the first, by more than the noise at the longest length.

    There, its upper quartile is below 1 and below the lower quartile of the control.
    """
    controls = {(g.phase, g.batch_size, g.length): g.control for g in groups}
    for (phase, batch_size), models in curves(groups).items():
        baselines = {g.baseline for g in groups if (g.phase, g.batch_size) == (phase, batch_size)} - {None}
        if len(baselines) != 1:  # the first model was not measured at some length
            continue
        baseline = str(baselines.pop())
        for model, rows in models.items():
            ratio_at = {length: row.ratio for length, row in rows.items() if row.ratio is not None}
            lengths = sorted(ratio_at)
            if model == baseline or not lengths:
                continue
            control = controls[phase, batch_size, lengths[-1]]
            if ratio_at[lengths[-1]].upper >= min(1.0, 1.0 if control is None else control.lower):
                continue
            speedups = [1 / ratio_at[length].median for length in lengths]
            length = crossing(lengths, speedups)
            if length is not None:
                yield Crossover(phase, batch_size, model, baseline, length, min(speedups) >= 1)


def case(group: Group) -> str:
    """The case of a group as text."""
    return f"{group.phase}, {group.batch_size} × {group.length:,}"


def read(folder: Path) -> Result:
    """Read the results in a folder; raises UserError for a file that is missing or damaged."""
    file = folder / FILE
    try:
        data = read_bytes(file, JSON_BYTES)
        parse_json(data)
        return _adapter().validate_json(data)
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_error(error)}; measure again") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; measure again") from None


def schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    return _adapter().json_schema()


@functools.cache
def _adapter() -> TypeAdapter[Result]:
    return TypeAdapter(Result)


def _is_near_one(*values: float) -> bool:
    return all(1 - NOISE <= value <= 1 + NOISE for value in values)
