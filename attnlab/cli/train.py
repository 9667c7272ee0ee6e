"""Train a mechanism on data; a run folder keeps everything."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnlab.cli._console import say
from attnlab.cli._flags import Asked, given_flags, understand
from attnlab.escape import shell_word

if TYPE_CHECKING:
    from attnlab.cli._console import Console
    from attnlab.training.runs import Run
    from attnlab.training.train import Prepared


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
    from attnlab.training.loop import seconds_a_step
    from attnlab.training.train import prepare, start
    from attnlab.training.train import train as train_prepared

    output, settings = asked.output, asked.settings
    silent = output.quiet or output.json
    console = Console(stderr=output.json, quiet=output.json, soft_wrap=True)
    save_path = None if output.save_path is None else Path(output.save_path)
    if save_path is not None:
        runs.check_save_path(save_path, overwrite=output.overwrite)
    run_dir = None if output.run_dir is None else Path(output.run_dir)
    resumed = None
    if output.resume is not None:
        resumed = runs.Run.open(Path(output.resume))
        if resumed.result() is not None:
            return _finished(console, resumed, save_path, as_json=output.json)
        runs.check_data(resumed)
        settings.machine.threads = resumed.config["threads"]
    elif run_dir is not None:
        folder.check_run_dir(run_dir, overwrite=output.overwrite)

    prepared = prepare(settings)
    if not silent:
        _announce(console, prepared, seconds_a_step(prepared.network, prepared.problem, settings))
    here = resumed or start(prepared, run_dir, overwrite=output.overwrite)
    if not silent:
        going_on = ", from its last checkpoint on" if resumed else ""
        console.print(f"  run       {short(here.path)}{going_on}\n")
    steps = _steps(prepared)
    begun_in = here.path
    try:
        with Display(console, prepared.problem.metric, 0, steps, quiet=silent) as display:
            outcome, result = train_prepared(
                prepared,
                here,
                resume=resumed is not None,
                checkpoint_seconds=output.checkpoint_seconds,
                watch=display,
                on_end=display.close,
            )
    except KeyboardInterrupt as stop:  # outside of the loop, or a second one in it
        say(f"stopped at once; go on with: {trainer()} --resume {short(here.path)}", file=sys.stderr)
        return 128 + getattr(stop, "signal", signal.SIGINT)
    if here.path != begun_in:
        say(f"{short(begun_in)} was removed or replaced; the run is kept in {short(here.path)}", file=sys.stderr)
    if result is None:
        go_on = f"go on with: {trainer()} --resume {short(here.path)}"
        say(f"stopped at step {outcome.step:,} of {steps:,}; {go_on}", file=sys.stderr)
        return 128 + (outcome.signal or 0)  # as a shell counts: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
    if save_path is not None:
        here.export(save_path)
    if output.json:
        say(json.dumps(result, ensure_ascii=False))
        return 0
    if outcome.how == "early":
        console.print(f"\nstopped early at step {outcome.step:,}: no better one in {settings.training.patience} looks")
    show_result(console, result)
    if not silent:
        _next(console, here, save_path, prepared, program())
    return 0


def _steps(prepared: Prepared) -> int:
    how = prepared.settings.training
    an_epoch = math.ceil(len(prepared.problem.train.x) / how.batch_size)
    return how.steps if how.steps is not None else an_epoch * (how.epochs or 1)


def _announce(console: Console, prepared: Prepared, step_seconds: float) -> None:
    """Say what is about to happen."""
    import torch
    from rich.text import Text

    from attnlab import tasks
    from attnlab.cli._words import duration
    from attnlab.training.machine import warnings as regrets

    settings, problem = prepared.settings, prepared.problem
    how, model = settings.training, settings.model
    entry = tasks.entry(settings.data.task)
    tokens = problem.train.x.shape[1] if problem.train.lengths is None else float(problem.train.lengths.float().mean())
    steps, batch = _steps(prepared), min(how.batch_size, len(problem.train.x))
    options = "".join(f", {k} {v}" for k, v in model.options.items() if v not in (None, False))
    layers = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
    threads = f", {torch.get_num_threads()} thread(s)" if prepared.device.type == "cpu" else ""
    epochs = "" if how.epochs is None else f" ({how.epochs} epoch{'s' if how.epochs > 1 else ''})"
    attention = sum(p.numel() for p in prepared.network.mechanisms()[0].parameters())
    lines = [
        ("task", f"{settings.data.task}: {entry.summary}"),
        (
            "data",
            f"{len(problem.train.x):,} to train on, {len(problem.validation.x):,} to choose by, "
            f"{len(problem.test.x):,} held out",
        ),
        *(("", fact) for fact in problem.facts),
        ("network", f"{model.model}: {layers}, embed_dim {model.embed_dim}{options}"),
        ("", f"{prepared.parameters:,} parameters, {attention:,} in each attention layer"),
        (
            "training",
            f"{steps:,} steps of {batch:,} sequences, {steps * batch * tokens:,.0f} tokens{epochs}",
        ),
        ("machine", f"{prepared.device}{threads}, {settings.machine.precision}"),
        ("time", f"about {duration(step_seconds * steps * 1.1)}"),
    ]
    for name, text in lines:
        console.print(f"  {name:<9} {text}")
    for regret in regrets(settings.machine, prepared.device):
        console.print(Text.assemble("  ", ("warning", "yellow"), f"   {regret}"))


def _next(console: Console, run: Run, save_path: Path | None, prepared: Prepared, program: str) -> None:
    """Say what one can do with it."""
    from attnlab.cli._program import python, short

    where = short(run.path)
    lines = [f"{program} evaluate {where}", f"{program} predict {where} --data FILE"]
    if prepared.problem.encoding.get("bytes"):
        lines.append(f"{program} generate {where} --prompt 'The '")
    path = json.dumps(str(run.path), ensure_ascii=False)
    lines.append(f"{python()} -c {shell_word(f'import attnlab; say(attnlab.load({path}))')}")
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
