"""Start, resume or extend a run, and print what is trained; imports torch."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.text import Text

from attnlab import tasks
from attnlab.catalog import pattern
from attnlab.cli._console import Console, plain_table, say
from attnlab.cli._flags import Output, TrainArgs
from attnlab.cli._format import duration, show_result
from attnlab.cli._invocation import launcher, program, python, short, trainer
from attnlab.cli._processes import same_everywhere
from attnlab.cli._progress import Display
from attnlab.network import Network
from attnlab.tasks.base import ColumnUse
from attnlab.tasks.metrics import METRICS
from attnlab.training import folder, runs
from attnlab.training.distributed import ALONE, LostProcessError, Processes
from attnlab.training.estimate import estimate
from attnlab.training.experiment import Experiment, prepare
from attnlab.training.extension import check_extension, extends, extension_summary, stopped_at
from attnlab.training.generate import caches_of_one_token
from attnlab.training.hardware import warnings
from attnlab.training.initial import check_weights
from attnlab.training.report import number
from attnlab.training.runs import Run
from attnlab.training.schedule import schedule
from attnlab.training.settings import Model, option_flags
from attnlab.training.train import start
from attnlab.training.train import train as train_experiment
from attnlab.utils.errors import UserError
from attnlab.utils.escape import one_line, shell_word

MAX_COLUMNS = 40
"""Columns of a table that are listed one by one."""


def train(args: TrainArgs, processes: Processes = ALONE) -> int:
    """Start, resume or extend a run, as the first of the ``processes``."""
    started = time.perf_counter()
    output, settings = args.output, args.settings
    verbose = not (output.quiet or output.json)
    console = Console(stderr=output.json, quiet=output.json, soft_wrap=True)
    save_path = None if output.save_path is None else Path(output.save_path)
    if save_path is not None:
        folder.check_save_path(save_path, overwrite=output.overwrite)
    run_dir = None if output.run_dir is None else Path(output.run_dir)
    resumed, extending = None, False
    if output.resume is not None:
        resumed = runs.Run.open(Path(output.resume))
        extending = _check_resume(resumed, args)
        if resumed.result() is not None and not extending:
            return _already_finished(console, resumed, output)
        settings.hardware.threads = resumed.config["threads"]
        if processes.size > 1:  # of one process, they may be all of this machine
            settings.hardware.threads = min(settings.hardware.threads, torch.get_num_threads())
    elif run_dir is not None:
        folder.check_run_dir(run_dir, overwrite=output.overwrite)
    if processes.size == 1 and settings.hardware.fsdp and (resumed is None or "fsdp" in args.given):
        raise UserError("--fsdp needs several processes; start them with torchrun, or give --no_fsdp")

    began = resumed is not None and resumed.began
    if processes.size > 1:
        processes.send({"settings": settings.flat(), "began": began})
    experiment = prepare(settings, began=began, processes=processes)
    if verbose:
        _show_experiment(console, experiment, processes)
        step = 0 if resumed is None else stopped_at(resumed)
        expected = estimate(experiment.network, experiment.task_data, settings, done=step, processes=processes.size)
        console.print(
            f"  {'time':<9} about {duration(expected.total)} left: {duration(expected.training)} training, "
            f"{duration(expected.evaluation + expected.result)} evaluation and report; "
            f"preparation took {duration(time.perf_counter() - started)}"
        )
    planned = schedule(settings.training, experiment.task_data)
    current = resumed or start(experiment, run_dir, overwrite=output.overwrite)
    if verbose:
        if extending:
            console.print(f"  extended  {extension_summary(current, settings, planned.epoch_steps)}")
        console.print(f"  run       {short(current.path)}{', resumed from its last checkpoint' if resumed else ''}\n")
    original_path = current.path
    resume = f"{trainer()} --resume"
    if processes.size > 1:
        processes.send({"run": str(current.path), "resume": resumed is not None, "same": same_everywhere(experiment)})
        resume = f"{launcher(processes.size)} train --resume"
    try:
        with Display(console, experiment.task_data.metric, planned.steps, quiet=not verbose) as display:
            outcome, result = train_experiment(
                experiment,
                current,
                resume=resumed is not None,
                checkpoint_seconds=output.checkpoint_seconds,
                callback=display,
                on_end=display.close,
                processes=processes,
            )
    except LostProcessError as error:
        raise UserError(f"{error}; resume with: {resume} {short(current.path)}") from error
    except KeyboardInterrupt as interrupt:  # outside the training loop, or a second Ctrl-C inside it
        if processes.size > 1:
            processes.is_first_to_fail()  # the others report nothing
        say(f"stopped at once; resume with: {resume} {short(current.path)}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    if current.path != original_path:
        say(f"{short(original_path)} was removed or replaced; the run is in {short(current.path)}", file=sys.stderr)
    if result is None:
        stopped = f"stopped at step {outcome.step:,} of {planned.steps:,}"
        say(f"{stopped}; resume with: {resume} {short(current.path)}", file=sys.stderr)
        return 128 + (outcome.signal or 0)  # as in a shell: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
    if save_path is not None:
        current.export(save_path)
    if output.json:
        say(json.dumps(result, ensure_ascii=False))
        return 0
    if outcome.how == "early":
        patience = settings.training.patience
        console.print(f"\nstopped early at step {outcome.step:,}: no improvement in {patience} evaluations")
    show_result(console, result)
    if verbose:
        _show_next_commands(console, current, save_path, experiment)
    return 0


def _check_resume(resumed: Run, args: TrainArgs) -> bool:
    """Check that a run can be resumed with these arguments, and return whether they extend it."""
    extending = extends(resumed, args.settings)
    if "data" in args.given:
        runs.check_data(resumed, args.settings.data.data)
    if extending:
        check_extension(resumed)
    elif resumed.result() is not None:
        return False
    runs.check_data(resumed, args.settings.data.data)
    if not resumed.began:
        check_weights(resumed)
    return extending


def _already_finished(console: Console, finished: Run, output: Output) -> int:
    result = finished.result()
    assert result is not None
    if output.save_path is not None:
        finished.export(Path(output.save_path))
    if output.json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        console.print(f"{short(finished.path)} has already finished")
        show_result(console, result)
    return 0


def _show_experiment(console: Console, experiment: Experiment, processes: Processes = ALONE) -> None:
    """Print what is trained, on what and how, and the baselines."""
    settings, data = experiment.settings, experiment.task_data
    training, model = settings.training, settings.model
    length = data.train.x.shape[1] if data.train.lengths is None else float(data.train.lengths.float().mean())
    planned, batch = schedule(training, data), min(training.batch_size, len(data.train.x))
    epochs = "" if training.epochs is None else f" ({_count(training.epochs, 'epoch')})"
    tokens = f"{planned.steps * batch * length:,.0f} tokens{epochs}"
    examples = f"{planned.validation_examples:,} validation examples"
    threads = f", {_count(torch.get_num_threads(), 'thread')}" if experiment.device.type == "cpu" else ""
    together = f", {processes.size} processes ({'FSDP2' if settings.hardware.fsdp else 'DDP'})" * (processes.size > 1)
    names = pattern.layer_names(model.model, model.layers)
    mechanisms = dict(zip(names, experiment.network.mechanisms(), strict=True))
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in mechanisms.items()}
    each = ", ".join(f"{size:,} in each {n if len(sizes) > 1 else 'attention'} layer" for n, size in sizes.items())
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    every = "step" if planned.evaluate_every == 1 else f"{planned.evaluate_every:,} steps"
    lines = [
        ("task", f"{settings.data.task}: {tasks.entry(settings.data.task).summary}"),
        ("data", " / ".join(f"{len(split.x):,} {name}" for name, split in splits.items())),
        *(("", line) for line in data.summary_lines),
        *_describe_network(model),
        ("", f"{experiment.parameters:,} parameters, {each}"),
        *_describe_caches(experiment.network),
        ("training", f"{_count(planned.steps, 'step')} of {batch:,} sequences, {tokens}"),
        ("", f"evaluated every {every} on {examples}, by {METRICS[data.metric].label}"),
        ("hardware", f"{experiment.device}{threads}, {settings.hardware.precision}{together}"),
    ]
    for name, text in lines:
        console.print(f"  {name:<9} {one_line(text)}")
    if data.columns:
        _show_columns(console, data.columns)
    for warning in warnings(settings.hardware, experiment.device):
        console.print(Text.assemble("  ", ("warning", "yellow"), f"   {warning}"))
    # Computed before training, so that a failure costs no training.
    scores = [f"{b.name} {number(data.metric, b.values.get(data.metric))}" for b in experiment.baselines]
    console.print(f"  {'baselines':<9} {', '.join(scores)}")


def _describe_network(model: Model) -> list[tuple[str, str]]:
    """The first lines about the network; those of a pattern have a line for each mechanism."""
    options: dict[str, str] = {}
    for flag, (name, option) in option_flags(model.model).items():
        if model.options[flag] not in (None, False):
            group = "" if flag == option.name else name
            options[group] = f"{options.get(group, '')}, {option.name} {model.options[flag]}"
    network = f"{model.model}: {_count(model.layers, 'layer')}, embed_dim {model.embed_dim}{options.pop('', '')}"
    return [("network", network), *(("", f"{name}: {text[2:]}") for name, text in options.items())]


def _describe_caches(network: Network) -> list[tuple[str, str]]:
    """The line about the memory of decoding; none for a network that decodes without caches."""
    if not (caches := caches_of_one_token(network)):
        return []
    sizes = (caches.bytes_per_token, "token"), (caches.bytes_per_sequence, "sequence")
    parts = [f"{size:,} bytes per {noun}" for size, noun in sizes if size]
    return [("", f"decoding with a cache of {' and '.join(parts)}")]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _show_columns(console: Console, columns: Sequence[ColumnUse]) -> None:
    """Print the use of each column of a table, and the counts for those after the first `MAX_COLUMNS`."""
    table = plain_table("  column", "use", "why", bold=False, overflow="fold")
    table.padding = (0, 2)
    for column in columns[:MAX_COLUMNS]:
        table.add_row(f"  {one_line(column.name)}", column.use, one_line(column.why))
    console.print()
    console.print(table, soft_wrap=False)
    if len(columns) > MAX_COLUMNS:
        counts = Counter(column.use for column in columns[MAX_COLUMNS:])
        rest = ", ".join(f"{count:,} {use}" for use, count in counts.items())
        console.print(f"  and {len(columns) - MAX_COLUMNS:,} more columns: {rest}")
    console.print()


def _show_next_commands(console: Console, finished: Run, save_path: Path | None, experiment: Experiment) -> None:
    path = short(finished.path)
    commands = [f"{program()} evaluate {path}", f"{program()} predict {path} --data FILE"]
    if experiment.task_data.encoding.get("bytes"):
        commands.append(f"{program()} generate {path} --prompt 'The '")
    quoted = json.dumps(str(finished.path), ensure_ascii=False)
    commands.append(f"{python()} -c {shell_word(f'import attnlab; print(attnlab.load({quoted}))')}")
    console.print(f"\nsaved in {path} (report.md, curve.png, model.safetensors)")
    if save_path is not None:
        console.print(f"saved to {short(save_path)}")
    console.print("next:")
    for command in commands:
        console.print(f"  {command}")
