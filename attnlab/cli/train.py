"""Train a mechanism on data and save everything in the folder of the run."""

from __future__ import annotations

import sys

from attnlab import tasks
from attnlab.cli._console import say
from attnlab.cli._flags import given_flags, parse_train_args, peek


def run(arguments: list[str]) -> int:
    """Train, after asking for the settings with ``--interactive``."""
    task = peek(arguments, "task")
    if task is not None and tasks.resolve(task) != task:
        say(f"note: the task {task} is now called {tasks.resolve(task)}", file=sys.stderr)
    if "interactive" in given_flags(arguments) and not {"-h", "--help"} & set(arguments):
        from attnlab.cli._interactive import ask_for_settings

        answered = ask_for_settings(arguments)
        if answered is None:
            return 0
        arguments = answered
    args = parse_train_args(arguments)
    from attnlab.cli._training import train  # imports torch, which takes seconds; --help never gets here

    return train(args)
