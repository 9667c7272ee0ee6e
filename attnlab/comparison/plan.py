"""What a comparison trains: cases (a mechanism at a point of the sweep) and trials (a case with a seed).

Nothing is trained or written here. The name of a trial's folder depends on its settings alone, so that a comparison
that is started again, or extended by seeds or mechanisms, finds the runs that it has finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import attnlab
from attnlab.catalog import pattern, registry
from attnlab.training.paths import SETTINGS, absolute, file_hash
from attnlab.training.settings import Settings

TUNING_SEED = 900_000
"""The seed of the runs that choose the learning rate, which is not among those that are compared."""

TEST_ONLY = "test_length"
"""The setting that changes the test data alone: its points share the trained networks."""

NOT_IN_A_STEP = ("steps", "epochs", "seed", "learning_rate", TEST_ONLY)
"""The settings that do not change the time of a training step."""

Value = int | float | str | bool
"""A value of a setting in a sweep."""


@dataclass(frozen=True)
class Sweep:
    """The values of one setting, for each of which all mechanisms are compared."""

    setting: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Case:
    """A mechanism at a point of the sweep; ``settings`` lack the seed, and the learning rate where it is tuned.

    ``label`` names the curve: the model, and the ``variant``, the values of further sweeps.
    """

    model: str
    settings: Settings
    point: Value | None = None
    variant: str = ""

    @property
    def label(self) -> str:
        """The name of the curve."""
        return f"{self.model}, {self.variant}" if self.variant else self.model

    @property
    def name(self) -> str:
        """The label and the point."""
        return self.label if self.point is None else f"{self.label}, {self.point}"

    @property
    def step(self) -> str:
        """A digest of what decides the time of a training step: the data and the settings without the duration."""
        return _digest(_with_hashes(self.settings.flat()) | dict.fromkeys(NOT_IN_A_STEP))


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    ``tests`` are the settings of further test data by the point that they belong to (see `TEST_ONLY`); without them the
    run's own result counts.
    """

    case: Case
    seed: int
    settings: Settings
    tests: Mapping[Value | None, Settings] = field(default_factory=dict)

    @property
    def learning_rate(self) -> float:
        """The peak learning rate."""
        return self.settings.training.learning_rate

    @property
    def is_tuning(self) -> bool:
        """Whether the trial only helps to choose the learning rate."""
        return self.seed == TUNING_SEED

    @property
    def folder(self) -> str:
        """The name of its folder: readable, and unique for its settings, data and versions."""
        digest = _digest(
            {
                "settings": _with_hashes(self.settings.flat()),
                "sources": _sources(self.settings.model.model),
                "tests": {str(point): absolute(each.flat()) for point, each in self.tests.items()},
            }
        )
        stem = re.sub(r"[^\w.-]+", "-", pattern.file_name(self.case.label))[:60].strip("-.")
        return f"{stem}-lr{self.learning_rate:g}-seed{self.seed}-{digest[:10]}"


def cases_of(models: Mapping[str, Settings], sweeps: Sequence[Sweep]) -> list[Case]:
    """Every model at every combination of the values; the first sweep is the horizontal axis.

    The values of further sweeps become part of the label: ``linear, embed_dim 16``.

    Raises:
        UserError: for a setting that a model does not have, or a value of another type.
    """
    cases = [Case(name, settings) for name, settings in models.items()]
    for sweep in reversed(sweeps):
        cases = [_at(case, sweep, value, axis=sweep is sweeps[0]) for case in cases for value in sweep.values]
    return cases


def plan_trials(
    cases: Sequence[Case], seeds: Iterable[int], learning_rates: Mapping[str, float]
) -> list[tuple[Trial, list[Case]]]:
    """A trial for every case and seed, with the cases that it covers.

    Cases that differ in the test data alone (see `TEST_ONLY`) share a network, which is trained for the longest.

    Args:
        cases: of the comparison.
        seeds: of each case.
        learning_rates: by the name of the case.
    """
    seeds = list(seeds)
    shared: dict[str, list[Case]] = {}
    for case in cases:
        training = case.settings.flat() | {TEST_ONLY: None}
        shared.setdefault(json.dumps([case.label, training], sort_keys=True), []).append(case)
    trials = []
    for group in shared.values():
        first = max(group, key=lambda case: case.settings.data.test_length or 0)
        rate = learning_rates[first.name]
        for seed in seeds:
            tests = {case.point: _with(case.settings, seed, rate) for case in group} if len(group) > 1 else {}
            trials.append((Trial(first, seed, _with(first.settings, seed, rate), tests), group))
    return trials


def _at(case: Case, sweep: Sweep, value: Value, *, axis: bool) -> Case:
    settings = case.settings.updated({sweep.setting: value}, "--sweep")
    if axis:
        return replace(case, settings=settings, point=value)
    return replace(case, settings=settings, variant=", ".join(filter(None, (f"{sweep.setting} {value}", case.variant))))


def _with(settings: Settings, seed: int, learning_rate: float) -> Settings:
    """A copy with a seed and a learning rate, on one thread."""
    copy = Settings(**{name: replace(getattr(settings, name)) for name in ("model", "data", "training", "hardware")})
    copy.training.seed, copy.training.learning_rate, copy.hardware.threads = seed, learning_rate, 1
    return copy


def _with_hashes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the hashes of files in place of their paths; of a run, that of its network."""
    hashes = {}
    for name in SETTINGS:
        file = settings[name] and Path(settings[name])
        if file and file.is_dir():
            file /= "model.safetensors"
        hashes[name] = file_hash(str(file)) if file and file.is_file() else settings[name]
    return {**settings, **hashes}


def _sources(model: str) -> dict[str, str | None]:
    """The hashes of the source files of the mechanisms, so that a changed mechanism is trained again."""
    files = {name: registry.entry(name).folder / f"{name}.py" for name in pattern.mechanisms(model)}
    return {name: file_hash(str(file)) for name, file in files.items()}


def _digest(content: Mapping[str, Any]) -> str:
    """A digest of the content and of the versions of attnlab and PyTorch."""
    versions = {"versions": (attnlab.__version__, torch.__version__)}
    return hashlib.sha256(json.dumps({**content, **versions}, sort_keys=True).encode()).hexdigest()
