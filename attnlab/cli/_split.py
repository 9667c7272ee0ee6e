"""Flags and their values before they are parsed, and those of a command separated from those of ``train``."""

from __future__ import annotations

import typing
from collections.abc import Sequence


def split_flags(arguments: Sequence[str], options: type) -> tuple[list[str], list[str]]:
    """The arguments that belong to a dataclass of options, and the rest; values follow their flag."""
    hints = typing.get_type_hints(options, include_extras=True)
    own: list[str] = []
    rest: list[str] = []
    for group in groups(arguments):
        name, _ = parse_flag(group[0])
        mine = not group[0].startswith("-") or name in hints or group[0] in ("-h", "--help")
        (own if mine else rest).extend(group)
    return own, rest


def groups(arguments: Sequence[str]) -> list[list[str]]:
    """Each flag with its values; words before the first flag are a group of their own."""
    result: list[list[str]] = []
    for argument in arguments:
        if not result or argument.startswith("--") or argument == "-h":
            result.append([])
        result[-1].append(argument)
    return result


def parse_flag(argument: str) -> tuple[str, bool]:
    """The name of a flag, and whether it is negated: ``--model.linear.no_bias`` negates ``model.linear.bias``."""
    before, dot, name = argument[2:].split("=")[0].replace("-", "_").rpartition(".")
    return f"{before}{dot}{name.removeprefix('no_')}", name.startswith("no_")
