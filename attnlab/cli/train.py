"""Train a mechanism on data; a run folder keeps everything."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.cli._console import say
from attnlab.cli._flags import Asked, given_flags, understand
from attnlab.utils.escape import one_line, shell_word

if TYPE_CHECKING:
    from attnlab.cli._console import Console
    from attnlab.tasks.base import ColumnUse
    from attnlab.training.estimate import Estimate
    from attnlab.training.experiment import Experiment
    from attnlab.training.runs import Run

MOST_COLUMNS = 40
"""Columns that are listed one by one."""


def run(arguments: list[str]) -> int:
    """Train, or ask first what to train."""
    if "interactive" in given_flags(arguments) and not {"-h", "--help"} & set(arguments):
        from attnlab.cli._interactive import ask

        answered = ask(arguments)
        if answered is None:
            return 0
        arguments = answered
    return train(understand(arguments))


def train(asked: Asked) -> int:
    """Do what was asked."""
    # Everything below needs torch, which takes a second to import; --help never comes here.
    from attnlab.cli._console import Console
    from attnlab.cli._program import program, short, trainer
    from attnlab.cli._progress import Display
    from attnlab.cli._words import show_result
    from attnlab.training import folder, runs
    from attnlab.training.estimate import estimate
    from attnlab.training.experiment import prepare
    from attnlab.training.extension import check_extension, extends, extension_summary, stopped_at
    from attnlab.training.initial import check_weights
    from attnlab.training.schedule import schedule
    from attnlab.training.train import start
    from attnlab.training.train import train as train_prepared

    began = time.perf_counter()
    output, settings = asked.output, asked.settings
    silent = output.quiet or output.json
    console = Console(stderr=output.json, quiet=output.json, soft_wrap=True)
    save_path = None if output.save_path is None else Path(output.save_path)
    if save_path is not None:
        folder.check_save_path(save_path, overwrite=output.overwrite)
    run_dir = None if output.run_dir is None else Path(output.run_dir)
    resumed, extending = None, False
    if output.resume is not None:
        resumed = runs.Run.open(Path(output.resume))
        extending = extends(resumed, settings)
        if "data" in asked.given:
            runs.check_data(resumed, settings.data.data)
        if extending:
            check_extension(resumed)
        elif resumed.result() is not None:
            return _finished(console, resumed, save_path, as_json=output.json)
        runs.check_data(resumed, settings.data.data)
        if not resumed.began:
            check_weights(resumed)
        settings.hardware.threads = resumed.config["threads"]
    elif run_dir is not None:
        folder.check_run_dir(run_dir, overwrite=output.overwrite)

    experiment = prepare(settings, began=resumed is not None and resumed.began)
    if not silent:
        _announce(console, experiment)
        done = 0 if resumed is None else stopped_at(resumed)
        expected = estimate(experiment.network, experiment.task_data, settings, done=done)
        _show_time(console, expected, time.perf_counter() - began)
    planned = schedule(settings.training, experiment.task_data)
    here = resumed or start(experiment, run_dir, overwrite=output.overwrite)
    if not silent:
        going_on = ", from its last checkpoint on" if resumed else ""
        if extending:
            console.print(f"  extended  {extension_summary(here, settings, planned.epoch_steps)}")
        console.print(f"  run       {short(here.path)}{going_on}\n")
    begun_in = here.path
    try:
        with Display(console, experiment.task_data.metric, 0, planned.steps, quiet=silent) as display:
            outcome, result = train_prepared(
                experiment,
                here,
                resume=resumed is not None,
                checkpoint_seconds=output.checkpoint_seconds,
                callback=display,
                on_end=display.close,
            )
    except KeyboardInterrupt as stop:  # outside of the loop, or a second one in it
        say(f"stopped at once; go on with: {trainer()} --resume {short(here.path)}", file=sys.stderr)
        return 128 + getattr(stop, "signal", signal.SIGINT)
    if here.path != begun_in:
        say(f"{short(begun_in)} was removed or replaced; the run is kept in {short(here.path)}", file=sys.stderr)
    if result is None:
        go_on = f"go on with: {trainer()} --resume {short(here.path)}"
        say(f"stopped at step {outcome.step:,} of {planned.steps:,}; {go_on}", file=sys.stderr)
        return 128 + (outcome.signal or 0)  # as a shell counts: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
    if save_path is not None:
        here.export(save_path)
    if output.json:
        say(json.dumps(result, ensure_ascii=False))
        return 0
    if outcome.how == "early":
        patience = settings.training.patience
        console.print(f"\nstopped early at step {outcome.step:,}: no better network in {patience} evaluations")
    show_result(console, result)
    if not silent:
        _next(console, here, save_path, experiment, program())
    return 0


def _announce(console: Console, experiment: Experiment) -> None:
    """Say what is about to happen."""
    import torch
    from rich.text import Text

    from attnlab import tasks
    from attnlab.tasks.metrics import METRICS
    from attnlab.training.hardware import warnings as regrets
    from attnlab.training.schedule import schedule

    settings, task_data = experiment.settings, experiment.task_data
    how, model = settings.training, settings.model
    entry = tasks.entry(settings.data.task)
    tokens = (
        task_data.train.x.shape[1] if task_data.train.lengths is None else float(task_data.train.lengths.float().mean())
    )
    planned, batch = schedule(how, task_data), min(how.batch_size, len(task_data.train.x))
    steps = planned.steps
    options = "".join(f", {k} {v}" for k, v in model.options.items() if v not in (None, False))
    layers = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
    threads = f", {torch.get_num_threads()} thread(s)" if experiment.device.type == "cpu" else ""
    epochs = "" if how.epochs is None else f" ({how.epochs} epoch{'s' if how.epochs > 1 else ''})"
    attention = sum(p.numel() for p in experiment.network.mechanisms()[0].parameters())
    lines = [
        ("task", f"{settings.data.task}: {entry.summary}"),
        (
            "data",
            f"{len(task_data.train.x):,} train / {len(task_data.validation.x):,} validation / "
            f"{len(task_data.test.x):,} test",
        ),
        *(("", fact) for fact in task_data.summary_lines),
        ("network", f"{model.model}: {layers}, embed_dim {model.embed_dim}{options}"),
        ("", f"{experiment.parameters:,} parameters, {attention:,} in each attention layer"),
        (
            "training",
            f"{steps:,} steps of {batch:,} sequences, {steps * batch * tokens:,.0f} tokens{epochs}",
        ),
        (
            "",
            f"evaluated every {'step' if planned.evaluate_every == 1 else f'{planned.evaluate_every:,} steps'} on "
            f"{planned.validation_examples:,} validation examples, "
            f"by {METRICS[task_data.metric].label}",
        ),
        ("machine", f"{experiment.device}{threads}, {settings.hardware.precision}"),
    ]
    for name, text in lines:
        console.print(f"  {name:<9} {one_line(text)}")
    if task_data.columns:
        _show_columns(console, task_data.columns)
    for regret in regrets(settings.hardware, experiment.device):
        console.print(Text.assemble("  ", ("warning", "yellow"), f"   {regret}"))
    _show_baselines(console, experiment)


def _show_columns(console: Console, columns: Sequence[ColumnUse]) -> None:
    """What was made of each column; of a wide table the first ones, and how many of each use."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="")
    for header in ("  column", "use", "why"):
        table.add_column(header, overflow="fold")
    for column in columns[:MOST_COLUMNS]:
        table.add_row(f"  {one_line(column.name)}", column.use, one_line(column.why))
    console.print()
    console.print(table, soft_wrap=False)
    if len(columns) > MOST_COLUMNS:
        counts = Counter(column.use for column in columns[MOST_COLUMNS:])
        rest = ", ".join(f"{count:,} {use}" for use, count in counts.items())
        console.print(f"  and {len(columns) - MOST_COLUMNS:,} more columns: {rest}")
    console.print()


def _show_baselines(console: Console, experiment: Experiment) -> None:
    """What the network is compared with; computed before training, so that a failure costs no training."""
    from attnlab.training.report import number

    metric = experiment.task_data.metric
    found = [f"{b.name} {number(metric, b.values.get(metric))}" for b in experiment.baselines]
    console.print(f"  {'baselines':<9} {', '.join(found)}")


def _show_time(console: Console, expected: Estimate, prepared_in: float) -> None:
    """How long the run will take."""
    from attnlab.cli._words import duration

    console.print(
        f"  {'time':<9} about {duration(expected.total)} more: {duration(expected.training)} training, "
        f"{duration(expected.evaluation + expected.result)} evaluation and report; "
        f"preparation took {duration(prepared_in)}",
    )


def _next(console: Console, run: Run, save_path: Path | None, experiment: Experiment, program: str) -> None:
    """Say what one can do with it."""
    from attnlab.cli._program import python, short

    where = short(run.path)
    lines = [f"{program} evaluate {where}", f"{program} predict {where} --data FILE"]
    if experiment.task_data.encoding.get("bytes"):
        lines.append(f"{program} generate {where} --prompt 'The '")
    path = json.dumps(str(run.path), ensure_ascii=False)
    lines.append(f"{python()} -c {shell_word(f'import attnlab; print(attnlab.load({path}))')}")
    console.print(f"\nkept in {where} (report.md, curve.png, model.safetensors)")
    if save_path is not None:
        console.print(f"saved to {short(save_path)}")
    console.print("next:")
    for line in lines:
        console.print(f"  {line}")


def _finished(console: Console, run: Run, save_path: Path | None, *, as_json: bool) -> int:
    from attnlab.cli._program import short
    from attnlab.cli._words import show_result

    result: dict[str, Any] | None = run.result()
    assert result is not None
    if save_path is not None:
        run.export(save_path)
    if as_json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        console.print(f"{short(run.path)} has finished already")
        show_result(console, result)
    return 0
