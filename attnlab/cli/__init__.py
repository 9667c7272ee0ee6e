"""The command line: one file a subcommand, found by its presence; each parses, calls and prints.

A subcommand's file has a docstring, whose first line is its summary, and ``run(arguments) -> exit code``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from attnlab.cli._console import say
from attnlab.utils.errors import UnknownNameError, UserError


def commands() -> dict[str, str]:
    """The subcommands and their summaries, in order."""
    files = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    return {p.stem: (ast.get_docstring(ast.parse(p.read_text("utf-8"))) or "").split("\n")[0] for p in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 a mistake in what was asked, 130 stopped by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Idle OpenMP threads sleep instead of spinning: on a machine that is shared, spinning is many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A sign that the terminal lacks is no reason to fail; a file or another program gets UTF-8 in every locale.
        chosen = sys.stdout.isatty() or "PYTHONIOENCODING" in os.environ
        sys.stdout.reconfigure(encoding=None if chosen else "utf-8", errors="replace")
    try:
        for word in arguments:
            if word != word.encode(errors="replace").decode():
                raise UserError(f"{word!a} is no valid UTF-8; give it another name")
        try:
            return _dispatch(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # whoever does not read it is found out here, not after the end
    except UserError as error:
        say(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone (`| head`): nothing is left to say
        _discard_output()
        return 141
    except OSError as error:  # what nobody foresaw: a name too long, no space for the output
        _discard_output()
        where = "" if error.filename is None else f" {error.filename}"
        say(f"error:{where or ' the system says'}: {error.strerror or error}", file=sys.stderr)
        return 2


def _discard_output() -> None:
    """Write what is still to be written to nowhere, so that leaving does not fail on it again."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a stand-in without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        say(_overview())
        return 0
    if arguments[0] == "--version":
        from attnlab import __version__

        say(f"attnlab {__version__}")
        return 0
    name, *rest = arguments
    if name not in commands():
        raise UnknownNameError("command", name, commands())
    code: int = import_module(f"attnlab.cli.{name}").run(rest)
    return code


def _overview() -> str:
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in known.items()]
    return "\n".join(
        [
            "usage: attnlab COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "attnlab COMMAND --help says more; attnlab train --interactive asks for everything.",
        ]
    )
