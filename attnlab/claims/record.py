"""The recorded result of a claim: ``attnlab/claims/registered/NAME.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnlab.claims.claim import FOLDER, Claim, Point
from attnlab.comparison.analysis import number
from attnlab.files.atomic import write_text
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

Number = Annotated[float, Field(allow_inf_nan=False)]
Verdict = Literal["holds", "partly", "undecided", "not at our scale"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Arm(_Record):
    """The measured values of an arm at a point, one per seed, and their mean with its 95 % interval."""

    arm: str
    point: Point | None
    values: list[Number]
    mean: Number
    low: Number
    high: Number


class Judged(_Record):
    """A criterion with its estimate and 95 % interval."""

    text: str
    mean: Number
    low: Number
    high: Number
    outcome: Literal["holds", "fails", "undecided"]

    @property
    def estimate(self) -> str:
        """``0.912 (0.896 to 0.928)``."""
        half = (self.high - self.low) / 2
        mean, low, high = (number(each, half) for each in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


class Record(_Record):
    """The result of a claim; ``sha256`` identifies the settings and criteria that were run."""

    name: str
    sha256: str
    seeds: list[int]
    date: str
    source: str
    machine: str
    arms: list[Arm]
    criteria: list[Judged]

    @property
    def verdict(self) -> Verdict:
        """``holds`` if all criteria hold, ``partly`` if some do; if none does, ``not at our scale`` if all fail."""
        outcomes = [criterion.outcome for criterion in self.criteria]
        if "holds" in outcomes:
            return "holds" if set(outcomes) == {"holds"} else "partly"
        return "undecided" if "undecided" in outcomes else "not at our scale"


def file_of(claim: Claim) -> Path:
    """The file of the recorded result."""
    return FOLDER / f"{claim.name}.json"


def write(record: Record, claim: Claim) -> Path:
    """Record a result."""
    write_text(file_of(claim), record.model_dump_json(indent=1) + "\n")
    return file_of(claim)


def read(claim: Claim) -> Record | None:
    """The recorded result; None if there is none, or if the experiment was changed since."""
    file = file_of(claim)
    if not file.is_file():
        return None
    try:
        result = Record.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {first_error(error)}; run the claim again with --record") from None
    return result if result.sha256 == claim.sha256 else None
