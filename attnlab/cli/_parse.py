"""From words to a dataclass, by tyro; a mistake becomes one line instead of a box."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from attnlab.utils.errors import UserError, nearest

T = TypeVar("T")


def parse(
    options: type[T],
    arguments: Sequence[str],
    *,
    command: str,
    description: str = "",
    default: Any = None,
) -> T:
    """``arguments`` as an ``options`` (a dataclass whose docstrings are the help).

    Underscores and hyphens both do. ``--help`` prints and leaves with 0.

    Raises:
        UserError: one line that names the argument and, for an unknown one, the nearest that exists.
    """
    said = io.StringIO()
    extra: dict[str, Any] = {} if default is None else {"default": default}
    try:
        # A wide terminal keeps tyro's message in one piece; help is drawn at the true width.
        wide = not {"-h", "--help"} & set(arguments)
        with _columns(wide), contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(
                options,
                prog=command,
                description=description,
                args=list(arguments),
                return_unknown_args=True,
                use_underscores=True,
                config=(tyro.conf.OmitArgPrefixes,),
                **extra,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError(f"{_first_line(said.getvalue())} (see {command} --help)") from None
    if unknown:
        raise UserError(_unknown(options, unknown[0], command))
    return parsed


@contextlib.contextmanager
def _columns(wide: bool) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    if wide:
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if wide:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before


def flags(options: Any) -> list[str]:
    """Every flag of a dataclass type, nested groups included; a dictionary is none."""
    hints = typing.get_type_hints(options)
    found: list[str] = []
    for f in dataclasses.fields(options):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            found += flags(hint)
        elif typing.get_origin(hint) is not dict:
            found.append(f"--{f.name}")
    return found


def _unknown(options: Any, word: str, command: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; options start with -- (see {command} --help)"
    flag = word.split("=")[0].replace("-", "_").replace("__", "--", 1)
    near = nearest(flag, flags(options))
    hint = f"did you mean {near}?" if near else f"see {command} --help"
    return f"unknown option {word.split('=')[0]}; {hint}"


def _first_line(box: str) -> str:
    """The message in the box that tyro draws, in our words where it speaks of Python's.

    The box has a title above; where the terminal's encoding has no lines to draw, it is one of hyphens and spaces.
    """
    lines = [line.strip("│ ").strip() for line in box.splitlines()[1:]]
    message = next((line for line in lines if line.strip("─-╰╯")), box.strip() or "the arguments cannot be understood")
    if message.startswith("Missing from"):  # the next line names the first one
        return f"{lines[lines.index(message) + 1].split()[0]} is missing"
    message = message.removesuffix(".").replace("Error parsing ", "")
    for pattern, plain in PLAINLY.items():
        message = re.sub(pattern, plain, message)
    return message


PLAINLY = {
    r": invalid literal for int\(\) with base 10: (.*)": r" takes a whole number, not \1",
    r": could not convert string to float: (.*)": r" takes a number, not \1",
    r": no type matching \{None\}\|INT could be instantiated from \[(.*)\]": r" takes a whole number, not \1",
    r": no type matching \{None\}\|FLOAT could be instantiated from \[(.*)\]": r" takes a number, not \1",
    r"invalid choice (.*) for argument '(.*)'. Expected one of \((.*)\)": r"\2 is one of \3, not \1",
    r"Missing value for argument '(.*)'. Expected 1 values": r"\1 needs a value",
}
