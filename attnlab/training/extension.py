"""Extension of a run to more epochs or steps.

The config keeps the run's ``id``, so that the checkpoints still belong to it, and lists the extensions. Writing it is
atomic: a killed process leaves either the earlier run or the extended one.
"""

from __future__ import annotations

from typing import Any

from attnlab.training import records
from attnlab.training.checkpoint import read_about
from attnlab.training.runs import Run
from attnlab.training.schedule import lr_at
from attnlab.training.settings import Settings
from attnlab.utils.errors import UserError


def length(settings: Settings) -> tuple[str, int]:
    """The unit of the training length, ``epochs`` or ``steps``, and its value."""
    training = settings.training
    return ("epochs", training.epochs or 1) if training.steps is None else ("steps", training.steps)


def extends(run: Run, settings: Settings) -> bool:
    """Whether ``settings`` train a run for longer; refuses a shorter training, or one in another unit."""
    (unit, before), (new_unit, after) = length(run.settings), length(settings)
    if new_unit != unit:
        raise UserError(f"{run.path} is trained by {unit} ({unit}={before}); extend it with --{unit}, not --{new_unit}")
    if after < before:
        done = run.result()
        reached = f"step {stopped_at(run):,}" if done is None else f"its end, step {done['steps']:,}"
        raise UserError(
            f"{run.path} is trained for {unit}={before} and has reached {reached}, so it cannot be trained for "
            f"{after}; give more {unit}, or leave --{unit} out"
        )
    return after > before


def stopped_at(run: Run) -> int:
    """The step of a run's last checkpoint; 0 before the first."""
    return int(last_checkpoint(run)["step"]) if run.began else 0


def last_checkpoint(run: Run) -> dict[str, Any]:
    """The description of a run's last checkpoint, read without its tensors."""
    file = run.path / "state.safetensors"
    about = read_about(file)
    records.check(records.StateRecord, about, file)
    return about


def check_extension(run: Run) -> None:
    """Refuse to extend a run that is out of patience, because it would stop again immediately."""
    patience = run.settings.training.patience
    about = last_checkpoint(run) if run.began else {}
    if patience is not None and about.get("waited", 0) >= patience:
        raise UserError(
            f"{run.path} is out of patience: its last {patience} evaluations, up to step {about['step']:,}, did "
            f"not improve, so it would stop immediately; start a new run from its parameters: --init_from {run.path}"
        )


def extension_summary(run: Run, settings: Settings, epoch_steps: int) -> str:
    """One line about an extension of ``run`` to ``settings``, and its effect on the learning rate."""
    (unit, before), (_, after) = length(run.settings), length(settings)
    factor = epoch_steps if unit == "epochs" else 1
    step, how = stopped_at(run), settings.training
    old, new = (lr_at(step, steps * factor, how.learning_rate, how.warmup) for steps in (before, after))
    change = "rises again" if new > old else "falls" if new < old else "stays"
    rates = f"the learning rate {change}, from {old:.2g} to {new:.2g}"
    return f"{unit} {before:,} to {after:,}, from step {step:,} on; {rates}"


def extend(run: Run, settings: Settings) -> Run:
    """The run with the longer training of ``settings``, written to its config.json.

    Its earlier result becomes invalid. The folder must be locked (see `Run.alone`).
    """
    check_extension(run)
    (unit, before), (_, after) = length(run.settings), length(settings)
    entry = {"from_step": stopped_at(run), f"{unit}_before": before, unit: after}
    return run.replace_config(
        {"settings": {**run.config["settings"], unit: after}, "extended": [*run.config.get("extended", []), entry]}
    )
