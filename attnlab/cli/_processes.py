"""``train`` in one of the processes that torchrun started; imports torch.

The first process reads the arguments, prints, and sends its settings to the others, which only load the data and train.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import attnlab
from attnlab.cli._invocation import launcher, short
from attnlab.training.distributed import LostProcessError, Processes
from attnlab.training.experiment import Experiment, prepare
from attnlab.training.paths import file_hash
from attnlab.training.settings import defaults
from attnlab.training.train import assist
from attnlab.utils.errors import UserError


def train_together(arguments: Sequence[str], train: Callable[[Sequence[str], Processes], int]) -> int:
    """Call ``train`` in the first process, and train with it in the others; an error is printed by one of them."""
    processes = Processes.connect()
    code = 1  # of an error that is not expected
    atexit.register(lambda: _exit_at_once(code))
    try:
        code = _assist(processes) if processes.rank else train(arguments, processes)
    except UserError:
        code = 2
        if processes.is_first_to_fail():
            raise
    except OSError as error:
        code = 141 if isinstance(error, BrokenPipeError) else 2  # as `attnlab.cli.main` returns
        raise
    except SystemExit as stop:  # --help
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when another process has ended
        processes.end(code)
    return code


def _exit_at_once(code: int) -> None:
    """End without finalizing Python, during which gloo may abort: https://github.com/pytorch/pytorch/pull/179291."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def same_everywhere(experiment: Experiment) -> dict[str, Any]:
    """What must be equal in all processes, by name."""
    return {
        "attnlab": attnlab.__version__,
        "torch": torch.__version__,
        "data": file_hash(experiment.settings.data.data),
        "training examples": len(experiment.task_data.train.x),
    }


def _assist(processes: Processes) -> int:
    message = processes.receive()
    if "exit" in message:
        return int(message["exit"])
    values = message["settings"]
    settings = defaults(values["model"], values["task"]).updated(values, "process 0")
    experiment = prepare(settings, began=message["began"], processes=processes)
    message = processes.receive()
    if "exit" in message:
        return int(message["exit"])
    for name, here in same_everywhere(experiment).items():
        if here != message["same"][name]:
            raise UserError(
                f"process {processes.rank} has other {name} than process 0: {here} and {message['same'][name]}; use "
                "the same versions and files on every machine"
            )
    try:
        outcome = assist(experiment, processes, resume=message["resume"])
    except LostProcessError as error:
        resume = f"{launcher(processes.size)} train --resume {short(Path(message['run']))}"
        raise UserError(f"{error}; resume with: {resume}") from error
    return 0 if outcome.signal is None else 128 + outcome.signal
