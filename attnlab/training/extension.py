"""A run that is trained for longer than it was started for.

The config keeps the run's ``id``, so the checkpoints still belong to it, and lists what was extended. Whatever moment a
process is killed at, the folder holds either the earlier run or the extended one.
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
    """How long is trained: ``epochs`` or ``steps``, and how many."""
    training = settings.training
    return ("epochs", training.epochs or 1) if training.steps is None else ("steps", training.steps)


def extends(run: Run, settings: Settings) -> bool:
    """Whether ``settings`` train a run for longer than its own.

    Raises:
        UserError: settings that train it for a shorter time, or count it in another unit.
    """
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
    """The step of a run's last checkpoint; 0 before the first.

    Raises:
        UserError: a checkpoint that is damaged.
    """
    return int(last_checkpoint(run)["step"]) if run.began else 0


def last_checkpoint(run: Run) -> dict[str, Any]:
    """The description of a run's last checkpoint, read without its tensors.

    Raises:
        UserError: a checkpoint that is missing or damaged.
    """
    file = run.path / "state.safetensors"
    about = read_about(file)
    records.check(records.StateRecord, about, file)
    return about


def check_extension(run: Run) -> None:
    """Refuse to extend a run that is out of patience: it would stop again at once.

    Raises:
        UserError: for such a run.
    """
    patience = run.settings.training.patience
    about = last_checkpoint(run) if run.began else {}
    if patience is not None and about.get("waited", 0) >= patience:
        raise UserError(
            f"{run.path} is out of patience: its last {patience} evaluations, up to step {about['step']:,}, were not "
            f"better than the best, so it would stop at once; start a new run from its weights: --init_from {run.path}"
        )


def extension_summary(run: Run, settings: Settings, epoch_steps: int) -> str:
    """What extending a run to ``settings`` means for its learning rate, in one line.

    Args:
        run: as it is before it is extended.
        settings: with the longer training.
        epoch_steps: optimizer steps per epoch.
    """
    (unit, before), (_, after) = length(run.settings), length(settings)
    factor = epoch_steps if unit == "epochs" else 1
    step, how = stopped_at(run), settings.training
    old, new = (lr_at(step, steps * factor, how.learning_rate, how.warmup) for steps in (before, after))
    change = "rises again" if new > old else "falls" if new < old else "stays"
    rates = f"the learning rate {change}, from {old:.2g} to {new:.2g}"
    return f"{unit} {before:,} to {after:,}, from step {step:,} on; {rates}"


def extend(run: Run, settings: Settings) -> Run:
    """The run with the longer training of ``settings``, written to its config.json.

    Its earlier result no longer counts. Call it while no other process trains in the folder.

    Raises:
        UserError: see `check_extension`.
    """
    check_extension(run)
    (unit, before), (_, after) = length(run.settings), length(settings)
    entry = {"from_step": stopped_at(run), f"{unit}_before": before, unit: after}
    return run.replace_config(
        {
            "settings": {**run.config["settings"], unit: after},
            "extended": [*run.config.get("extended", []), entry],
        }
    )
