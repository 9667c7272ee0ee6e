"""Parse arguments into a dataclass with tyro; an error is one line instead of a box."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from tyro import _errors as tyro_errors

from attnlab.cli._console import say
from attnlab.utils.errors import UserError, nearest

T = TypeVar("T")


def parse(options: type[T], arguments: Sequence[str], *, command: str, description: str) -> T:
    """``arguments`` as an ``options`` instance; the docstrings of its fields are the help.

    Underscores and hyphens are equivalent. ``--help`` prints and exits with code 0.

    Raises:
        UserError: one line that names the argument and, for an unknown one, the nearest that exists.
    """
    with tyro_errors.on_parse_error(functools.partial(_refuse, options=options, command=command)):
        return tyro.cli(
            options,
            prog=command,
            description=description,
            args=list(arguments),
            use_underscores=True,
            config=(tyro.conf.OmitArgPrefixes,),
        )


def rename_flags(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """The arguments with old spellings of flags replaced, and a note about each on standard error."""
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        new = renamed.get(name[2:].replace("-", "_")) if name.startswith("--") else None
        if new is not None:
            arguments[i] = f"--{new}{equals}{value}"
            note_renamed(name, new)
    return arguments


@functools.cache  # a command line may be parsed several times
def note_renamed(old: str, new: str) -> None:
    """Print a note on standard error, once per process."""
    say(f"note: {old} is now called --{new}; the old name will be removed", file=sys.stderr)


def flags(options: Any) -> list[str]:
    """Every flag of a dataclass or pydantic model, nested groups included."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(options).items():
        if dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields"):
            names += flags(hint)
        elif typing.get_origin(hint) is not dict:
            names.append(f"--{name}")
    return names


def _refuse(event: tyro_errors.ParseErrorEvent, *, options: Any, command: str) -> NoReturn:
    see = f"(see {command} --help)"
    match event:
        case (
            tyro_errors.UnrecognizedArgs(tokens=[token, *_]) | tyro_errors.MissingArgs(unrecognized_tokens=[token, *_])
        ):
            raise UserError(_unrecognized(token, options, command))
        case tyro_errors.MissingArgs(missing_arguments=[missing, *_]):
            raise UserError(f"{_name(missing.arg)} is missing {see}")
        case tyro_errors.BadValue(argument=argument) if argument.is_positional():
            raise UserError(f"{_name(argument)} is missing {see}")
        case tyro_errors.BadValue(argument=argument):
            raise UserError(f"{_name(argument)} needs a value {see}")
        case tyro_errors.InvalidChoice(argument=argument, value=value):
            # The event's own choices are unordered where None is one of them.
            choices = str(argument.lowered.metavar).strip("{}").replace(",", ", ")
            raise UserError(f"{_name(argument)} must be one of {choices}, not {value!r} {see}")
        case tyro_errors.InstantiationFailure(argument=argument, message=message) if argument is not None:
            raise UserError(f"{_name(argument)} {_expected(message)} {see}")
    raise UserError(f"the arguments are invalid {see}")


def _name(argument: Any) -> str:
    return str(argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[-1])


def _expected(message: str) -> str:
    """What the value must be, from the error that Python's own conversion raised."""
    for kind, pattern in {"an integer": r"with base 10: (.*)", "a number": r"to float: (.*)"}.items():
        if match := re.search(pattern, message):
            return f"must be {kind}, not {match[1]}"
    return f"is invalid: {message.splitlines()[0]}"


def _unrecognized(token: str, options: Any, command: str) -> str:
    if not token.startswith("-"):
        return f"unexpected argument {token!r}; options start with -- (see {command} --help)"
    flag = token.split("=")[0]
    near = nearest(flag.replace("-", "_").replace("__", "--", 1), flags(options))
    return f"unknown option {flag}; {f'did you mean {near}?' if near else f'see {command} --help'}"
