"""Measure the importance of each head of a run's network, and prune the least important ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.text import Text
from tyro.conf import Positional, arg

from attnlab.cli._console import Console, plain_table, say
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.analysis.bootstrap import Change
    from attnlab.analysis.heads import Study

MAX_CURVE_ROWS = 16
"""Rows of the pruning curve that are printed, evenly spaced; --json has all."""


RENAMED = {"instead": "ablation"}
"""Old names of flags, which are accepted for one version."""


@dataclass
class Options:
    """What to measure and what to prune."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder of the run."""
    examples: int = 2_000
    """The number of training examples that the importance is computed on."""
    ablation: Literal["zero", "mean"] = "zero"
    """What replaces the output of an ablated head: zero, or its mean over those examples."""
    prune: Annotated[float | None, arg(metavar="SHARE")] = None
    """Prune this share of all heads, the least important ones; needs --save_path."""
    save_path: Annotated[str | None, arg(metavar="STR")] = None
    """Save the pruned network to this file: .safetensors, .pth or .pt."""
    overwrite: bool = False
    """Replace the file in --save_path."""
    device: str = "auto"
    """The device to compute on."""
    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Print one row per head and the pruning curve; prune if asked to."""
    if (options.prune is None) != (options.save_path is None):
        raise UserError("--prune SHARE and --save_path FILE go together: the pruned network is saved to FILE")
    if options.examples < 1:
        raise UserError(f"--examples must be at least 1, not {options.examples}")
    from attnlab.analysis.runs import prune_run, study_run
    from attnlab.training import folder, runs

    trained = runs.Run.open(Path(options.run))
    runs.check_data(trained)
    if options.save_path is not None:
        if Path(options.save_path).resolve().parent == trained.path.resolve():
            raise UserError(f"--save_path {options.save_path} is inside the folder of the run; give another folder")
        folder.check_save_path(Path(options.save_path), overwrite=options.overwrite)
    with Console(stderr=True).status(Text("evaluating the unpruned network")) as status:
        experiment, study = study_run(
            trained,
            options.device,
            share=options.prune,
            examples=options.examples,
            ablation=options.ablation,
            progress=lambda done, of: status.update(Text(f"{done} of {of} passes over the validation data")),
        )
    pruned = None
    if options.prune is not None and options.save_path is not None:
        pruned = prune_run(trained, experiment, study.plan(options.prune), Path(options.save_path))
    model, task = experiment.settings.model.model, experiment.settings.data.task
    if options.json:
        result = {"run": options.run, "model": model, "task": task, **asdict(study), "pruned": pruned}
        say(json.dumps(result, ensure_ascii=False))
    else:
        _print(Console(soft_wrap=True), f"{model} on {task}", study, pruned)
    return 0


def _print(console: Console, title: str, study: Study, pruned: dict[str, Any] | None) -> None:
    from attnlab.tasks.metrics import METRICS
    from attnlab.training.report import number

    metric, label = study.metric, METRICS[study.metric].label
    measures = (metric, "change", "95 % interval")

    def cells(change: Change) -> tuple[str, ...]:
        interval = f"{_signed(metric, change.low)} to {_signed(metric, change.high)}"
        return number(metric, change.metric), _signed(metric, change.change), interval

    console.print(f"{title}: {label} {number(metric, study.whole)} with all heads\n")
    table = plain_table("layer", "head", "importance", *measures, right=True, no_wrap=True)
    for head in study.heads:
        table.add_row(str(head.layer), str(head.head), f"{head.importance:.3f}", *cells(head.without))
    console.print(f"one head at a time replaced by {'zero' if study.ablation == 'zero' else 'its mean'}")
    console.print(table)
    if study.curve:
        table = plain_table("heads left", "pruned", *measures, right=True, no_wrap=True)
        last = len(study.curve) - 1
        for i in dict.fromkeys(round(i * last / (MAX_CURVE_ROWS - 1)) for i in range(MAX_CURVE_ROWS)):
            step = study.curve[i]
            table.add_row(str(step.left), _join(step.gone), *cells(step.reached))
        console.print("\npruned cumulatively, the least important first (layer.head)")
        console.print(table)
    better = "higher" if METRICS[metric].higher_is_better else "lower"
    console.print(
        f"\n  importance on {study.training_examples:,} training examples, {label} ({better} is better) on "
        f"{study.validation_examples:,} validation examples; the test data were not used",
        style="dim",
    )
    if study.note:
        console.print(f"  {study.note}", style="dim")
    if pruned is not None:
        heads = _join((layer, head) for layer, kept in sorted(pruned["heads"].items()) for head in sorted(kept))
        console.print(
            f"\npruned {heads}: {metric} {number(metric, pruned['validation'])} on validation, "
            f"{pruned['parameters']:,} of {pruned['parameters_before']:,} parameters left; "
            f"saved to {pruned['saved_to']}"
        )


def _join(heads: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{layer}.{head}" for layer, head in heads)


def _signed(metric: str, value: float) -> str:
    from attnlab.training.report import number

    text = number(metric, abs(value))
    return text if not float(text) else f"{'-' if value < 0 else '+'}{text}"
