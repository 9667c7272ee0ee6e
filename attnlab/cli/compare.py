"""Train several mechanisms with several seeds, and report which are better, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from attnlab.cli._parse import parse
from attnlab.cli._split import split_flags
from attnlab.training.settings import OptionalStr
from attnlab.utils.errors import UserError

DESCRIPTION = """Train several mechanisms with several seeds, and report which are better, with intervals.

For example:
  attnlab compare --models multihead,linear,deltanet --task recall --seeds 5
  attnlab compare --models multihead,linear --data my.csv --target price

All options of attnlab train that describe the data, the network and the training can be given too; an option of a
mechanism applies to those that have it. The same command resumes a comparison that was stopped.
"""


@dataclass
class CompareOptions:
    """The comparison."""

    models: Annotated[list[str], arg(metavar="MODEL ...")]
    """Names separated by commas, all, or family:NAME; a pattern with commas in parentheses: "(3*linear,multihead)"."""
    seeds: str = "5"
    """The number of seeds, or the seeds themselves separated by commas: 3,4,5."""
    budget: Literal["params", "time", "flops", "none"] = "params"
    """What is held equal: parameters (by width), training time or operations (by steps), or only the settings."""
    lr: str = "sweep"
    """The learning rate: sweep tries 1/3, 1 and 3 times the default of the task with each mechanism and takes the best
    on validation data; a list of numbers tries those; one number sets it; default is that of the task."""
    sweep: Annotated[list[str] | None, arg(metavar="NAME=VALUE,VALUE ...")] = None
    """Compare at every value of a setting: pairs=4,8,16. The first is the axis; others give curves of their own."""
    baseline: OptionalStr = None
    """The model that the others are compared with; by default the first."""
    jobs: int = 1
    """Runs at the same time, each on one thread."""
    on: Literal["local", "ray"] = "local"
    """Where: on this machine, or on the Ray cluster that RAY_ADDRESS names."""
    output: OptionalStr = None
    """The folder of the runs and the report; comparisons/TASK-... by default."""
    costs: bool = True
    """Whether speed and memory of each mechanism are measured for the report."""
    json: bool = False
    """Print the results as JSON and nothing else."""
    quiet: bool = False
    """Print only the verdict."""


def run(arguments: list[str]) -> int:
    """Compare, and write the report."""
    own, rest = split_flags(arguments, CompareOptions)
    options = parse(CompareOptions, own, command="attnlab compare", description=DESCRIPTION)
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {options.jobs}")
    from attnlab.cli._comparison import compare  # imports torch, which takes seconds; --help never gets here

    return compare(options, rest, arguments)
