"""A claim: a TOML file in ``attnlab/claims/registered/`` with the settings and the criteria of its experiment.

::

    claim = "Two layers learn induction, one layer does not."
    paper = "Olsson et al. 2022, In-context Learning and Induction Heads, arXiv:2209.11895"
    lessons = ["multihead"]

    [settings]                 # shared by all arms: the flags of `attnlab train`
    task = "induction"
    model = "multihead"

    [arms."1 layer"]           # what differs; each arm is trained with every seed
    layers = 1

    [arms."2 layers"]
    layers = 2

    [[criteria]]               # the verdict is about these alone
    text = "two layers reach an accuracy of 0.95"
    arm = "2 layers"
    at_least = 0.95

A criterion is about the mean over the seeds of ``arm`` (at the point ``at`` of a sweep), or with ``minus`` about the
paired difference from another arm (at ``minus_at``; by default the same arm or point).
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attnlab.utils.errors import UnknownNameError, UserError
from attnlab.utils.validation import first_error

FOLDER = Path(__file__).parent / "registered"

Point = int | float | str
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sweep(_Strict):
    """The values of a setting, or of the argument of the measure ``pruned``, at which every arm is measured."""

    setting: str
    values: Annotated[list[Point], Field(min_length=1)]


class Criterion(_Strict):
    """A bound on a mean or on a paired difference.

    It holds if the whole 95 % interval is on its side of the bound, and fails if the whole interval is on the other.
    """

    text: str
    arm: str
    at: Point | None = None
    minus: str | None = None
    minus_at: Point | None = None
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Criterion:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("needs at_least or at_most, and not both")
        return self

    @property
    def is_difference(self) -> bool:
        """Whether it is about a difference."""
        return self.minus is not None or self.minus_at is not None

    @property
    def other(self) -> tuple[str, Point | None]:
        """The arm and the point that are subtracted."""
        return self.minus or self.arm, self.at if self.minus_at is None else self.minus_at


class Claim(_Strict):
    """A published claim with its experiment.

    ``measure`` is ``test`` (the test metric of the task), ``pruned`` (the test metric after a share of the heads was
    removed) or ``first_token`` (the mean attention weight on the first token).
    """

    name: str
    claim: str
    paper: str
    lessons: list[str] = []
    not_shown: str
    """What the experiment leaves open."""
    measure: Literal["test", "pruned", "first_token"] = "test"
    seeds: Annotated[int, Field(ge=5)] = 5
    settings: dict[str, Any]
    arms: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    sweep: Sweep | None = None
    criteria: Annotated[list[Criterion], Field(min_length=1)]

    @property
    def sha256(self) -> str:
        """The hash of what decides a verdict: a result belongs to the criteria that were registered before it."""
        content = self.model_dump(include={"measure", "settings", "arms", "sweep", "criteria"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _known_names(self) -> Claim:
        points: list[Point | None] = [None] if self.sweep is None else [*self.sweep.values]
        for criterion in self.criteria:
            for arm, point in ((criterion.arm, criterion.at), criterion.other):
                if arm not in self.arms:
                    raise ValueError(f"criterion {criterion.text!r} names the arm {arm!r}, which there is not")
                if point not in points:
                    raise ValueError(f"criterion {criterion.text!r} is at {point}, which is not in the sweep")
        return self


def names() -> list[str]:
    """The names of the registered claims, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def load(name: str) -> Claim:
    """The claim with this name.

    Raises:
        UnknownNameError: for a name that no file has.
        UserError: for a file that is malformed.
    """
    if name not in names():
        raise UnknownNameError("claim", name, names())
    return read(FOLDER / f"{name}.toml")


def read(file: Path) -> Claim:
    """The claim in a file; UserError for one that is malformed."""
    try:
        return Claim(name=file.stem, **tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UserError(f"{file}: {first_error(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is malformed: {error}") from None
