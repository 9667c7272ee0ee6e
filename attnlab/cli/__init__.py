"""The command line: one file per subcommand, found by its presence.

The file of a subcommand has a docstring, which is its help, a dataclass ``Options`` and ``run(options) -> exit code``.
``RENAMED`` maps old names of flags to new ones. Without ``Options``, ``run`` gets the arguments.
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
    """The subcommands and their summaries, in alphabetical order."""
    files = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    return {p.stem: (ast.get_docstring(ast.parse(p.read_text("utf-8"))) or "").split("\n")[0] for p in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        The exit code: 0 for success, 1 for a failed check, 2 for a user error, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Idle OpenMP threads sleep instead of spinning, which slows down a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal lacks is replaced; files and pipes get UTF-8 in every locale.
        keep = sys.stdout.isatty() or "PYTHONIOENCODING" in os.environ
        sys.stdout.reconfigure(encoding=None if keep else "utf-8", errors="replace")
    try:
        for argument in arguments:
            if argument != argument.encode(errors="replace").decode():
                raise UserError(f"{argument!a} is not valid UTF-8; rename it")
        try:
            return _dispatch(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a closed pipe raises here, not at exit
    except UserError as error:
        say(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe (`| head`)
        _discard_output()
        return 141
    except OSError as error:  # for example a name that is too long, or a full disk
        _discard_output()
        file = "" if error.filename is None else f"{error.filename}: "
        say(f"error: {file}{error.strerror or error}", file=sys.stderr)
        return 2


def _discard_output() -> None:
    """Send buffered output to the null device, so that flushing it at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a replaced stream without a file
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
    module = import_module(f"attnlab.cli.{name}")
    if not hasattr(module, "Options"):
        return int(module.run(rest))
    from attnlab.cli._parse import parse, rename_flags  # imports tyro

    rest = rename_flags(rest, getattr(module, "RENAMED", {}))
    return int(module.run(parse(module.Options, rest, command=f"attnlab {name}", description=module.__doc__ or "")))


def _overview() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in commands().items()]
    footer = "attnlab COMMAND --help lists its options; attnlab train --interactive asks for each of them."
    return "\n".join(["usage: attnlab COMMAND [OPTIONS]", "", *lines, "", footer])
