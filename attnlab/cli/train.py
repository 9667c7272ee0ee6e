"""Train a mechanism on data and save everything in the folder of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnlab import tasks
from attnlab.cli._console import say
from attnlab.cli._flags import given_flags, parse_train_args, peek
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.training.distributed import Processes


def run(arguments: list[str]) -> int:
    """Train, alone or with the other processes that torchrun started."""
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        try:
            from attnlab.cli._processes import train_together

            return train_together(arguments, _run)
        except KeyboardInterrupt:
            if os.environ["RANK"] == "0":  # the first process reports it
                raise
            return 130
    return _run(arguments)


def _run(arguments: Sequence[str], processes: Processes | None = None) -> int:
    """Train, after asking for the settings with ``--interactive``; ``processes`` are None for one."""
    task = peek(arguments, "task")
    if task is not None and tasks.resolve(task) != task:
        say(f"note: the task {task} is now called {tasks.resolve(task)}", file=sys.stderr)
    if "interactive" in given_flags(arguments) and not {"-h", "--help"} & set(arguments):
        if processes is not None:
            raise UserError("--interactive asks in one process; leave it out, or leave out torchrun")
        from attnlab.cli._interactive import ask_for_settings

        answered = ask_for_settings(arguments)
        if answered is None:
            return 0
        arguments = answered
    args = parse_train_args(arguments)
    from attnlab.cli._training import train  # imports torch, which takes seconds; --help never gets here

    return train(args) if processes is None else train(args, processes)
