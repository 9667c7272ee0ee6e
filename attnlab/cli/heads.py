"""Say what each head of a run's network is worth, and prune those that are worth least."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.analysis.bootstrap import Change
    from attnlab.analysis.heads import Study

MOST = 16
"""Steps of the curve that are printed; of more, so many evenly spaced ones. --json has all."""


@dataclass
class Options:
    """What to look at, and what to prune."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The run's folder."""
    examples: int = 2_000
    """How many training examples importance is taken from."""
    instead: Literal["zero", "mean"] = "zero"
    """What stands in the place of a head that is taken out alone: zero, or its mean over those examples."""
    prune: Annotated[float | None, arg(metavar="SHARE")] = None
    """Take out this share of all heads, the least important; needs --save_path."""
    save_path: Annotated[str | None, arg(metavar="STR")] = None
    """Save the pruned network here: .safetensors, .pth or .pt."""
    overwrite: bool = False
    """Replace the file in --save_path, whatever it is."""
    device: str = "auto"
    """Where to compute."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print a line a head and the curve of pruning; prune where asked to."""
    options = parse(
        Options, arguments, command="attnlab heads", description="What each head of a run's network is worth."
    )
    if (options.prune is None) != (options.save_path is None):
        raise UserError("--prune SHARE and --save_path FILE go together: what is pruned is saved there")
    if options.examples < 1:
        raise UserError(f"--examples must be at least 1, not {options.examples}")
    from rich.text import Text

    from attnlab.analysis.runs import prune_run, study_run
    from attnlab.cli._console import Console
    from attnlab.training import folder, runs

    found = runs.Run.open(Path(options.run))
    runs.check_data(found)
    if options.save_path is not None:
        if Path(options.save_path).resolve().parent == found.path.resolve():
            raise UserError(f"--save_path {options.save_path} is in the run's own folder, which stays as it is")
        folder.check_save_path(Path(options.save_path), overwrite=options.overwrite)
    with Console(stderr=True).status(Text("the network as it is")) as status:
        experiment, study = study_run(
            found,
            options.device,
            share=options.prune,
            examples=options.examples,
            ablation=options.instead,
            progress=lambda done, of: status.update(Text(f"{done} of {of} passes over the validation data")),
        )
    pruned = None
    if options.prune is not None and options.save_path is not None:
        pruned = prune_run(found, experiment, study.plan(options.prune), Path(options.save_path))
    model, task = experiment.settings.model.model, experiment.settings.data.task
    if options.json:
        said = {"run": options.run, "model": model, "task": task, **asdict(study), "pruned": pruned}
        say(json.dumps(said, ensure_ascii=False))
    else:
        _print(Console(soft_wrap=True), f"{model} on {task}", study, pruned)
    return 0


def _print(console: Any, title: str, study: Study, pruned: dict[str, Any] | None) -> None:
    from rich.table import Table

    from attnlab.tasks.metrics import METRICS
    from attnlab.training.report import number

    def table(*columns: str) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in (*columns, study.metric, "change", "95 % interval"):
            made.add_column(column, justify="right", no_wrap=True)
        return made

    def cells(change: Change) -> tuple[str, ...]:
        low, high = (_signed(study.metric, value) for value in (change.low, change.high))
        return number(study.metric, change.metric), _signed(study.metric, change.change), f"{low} to {high}"

    console.print(f"{title}: {METRICS[study.metric].label} {number(study.metric, study.whole)} with all heads\n")
    alone = table("layer", "head", "importance")
    for head in study.heads:
        alone.add_row(str(head.layer), str(head.head), f"{head.importance:.3f}", *cells(head.without))
    console.print(f"each head alone replaced by {study.ablation if study.ablation == 'zero' else 'its mean'}")
    console.print(alone)
    if study.curve:
        curve = table("heads left", "pruned")
        for step in _spaced(study):
            gone = ", ".join(f"{layer}.{head}" for layer, head in step.gone)
            curve.add_row(str(step.left), gone, *cells(step.reached))
        console.print("\npruned one after the other, the least important (layer.head) first")
        console.print(curve)
    better = "higher" if METRICS[study.metric].higher_is_better else "lower"
    console.print(
        f"\n  importance on {study.training_examples:,} training examples, {METRICS[study.metric].label} "
        f"({better} is better) on {study.validation_examples:,} validation examples; the test data were not looked at",
        style="dim",
    )
    if pruned is not None:
        gone = ", ".join(
            f"{layer}.{head}" for layer, heads in sorted(pruned["heads"].items()) for head in sorted(heads)
        )
        console.print(
            f"\npruned {gone}: {study.metric} {number(study.metric, pruned['validation'])} on validation, "
            f"{pruned['parameters_before']:,} parameters became {pruned['parameters']:,}; "
            f"saved to {pruned['saved_to']}"
        )


def _spaced(study: Study) -> list[Any]:
    last = len(study.curve) - 1
    if last < MOST:
        return list(study.curve)
    return [study.curve[round(i * last / (MOST - 1))] for i in range(MOST)]


def _signed(metric: str, value: float) -> str:
    from attnlab.training.report import number

    shown = number(metric, abs(value))
    return shown if not float(shown) else f"{'-' if value < 0 else '+'}{shown}"
