"""Read the attributes and options of a class from its source text: importing torch would delay ``--help`` by seconds.

Only literals are read and nothing is executed, so that a file that cannot be imported can still be listed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlab.utils.errors import UserError

REQUIRED: Any = object()
"""The default of a required option."""

_TYPES = {"Literal": typing.Literal, "Optional": typing.Optional, "Sequence": Sequence}
_TYPES |= {kind.__name__: kind for kind in (int, float, bool, str)}


@dataclass(frozen=True)
class Option:
    """One argument of a constructor; the annotation is source text."""

    name: str
    annotation: str
    default: Any
    help: str

    @property
    def kinds(self) -> list[Any]:
        """The members of a union ``A | B`` that can be parsed from text; a class of the mechanism cannot."""
        kinds = []
        for member in _members(ast.parse(self.annotation, mode="eval").body):
            with contextlib.suppress(Exception):  # another name than those in _TYPES
                kinds.append(eval(ast.unparse(member), {"__builtins__": {}}, _TYPES))
        return kinds


@dataclass(frozen=True)
class ClassSource:
    """The source text of a class.

    ``attributes`` contains the literal class attributes, and the keywords of those that are calls with
    literal keywords, such as ``card = Card(title=...)``. ``renamed`` contains the arguments of
    ``@renamed_options(old="new")``.
    """

    name: str
    path: Path
    attributes: dict[str, Any]
    options: tuple[Option, ...]
    renamed: dict[str, str]


def read_class(path: Path, attribute: str) -> ClassSource:
    """Return the first class in the file at ``path`` whose body sets ``attribute``.

    Raises:
        UserError: if the file cannot be parsed, has no such class, or has an option whose default is not a literal.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), path, attribute)
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


@functools.lru_cache(maxsize=256)  # of the text, so that a changed file is parsed again
def _parse(text: str, path: Path, attribute: str) -> ClassSource:
    tree = ast.parse(text, str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and attribute in (attributes := _attributes(node)):
            init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            if init is None:
                return ClassSource(node.name, path, attributes, (), {})
            options = _options(init, ast.get_docstring(node) or "", path)
            return ClassSource(node.name, path, attributes, options, _renamed(init))
    raise UserError(f"{path} has no class with `{attribute} = ...` in its body, written with literals only")


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for statement in node.body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                with contextlib.suppress(ValueError):  # not a literal
                    if isinstance(value, ast.Call):
                        attributes[name] = {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
                    else:
                        attributes[name] = ast.literal_eval(value)
    return attributes


def _renamed(init: ast.FunctionDef) -> dict[str, str]:
    for decorator in init.decorator_list:
        match decorator:
            case ast.Call(func=ast.Name(id="renamed_options"), keywords=keywords):
                return {str(k.arg): str(k.value.value) for k in keywords if isinstance(k.value, ast.Constant)}
    return {}


def _options(init: ast.FunctionDef, doc: str, path: Path) -> tuple[Option, ...]:
    from docstring_parser import parse

    helps = {p.arg_name: " ".join((p.description or "").split()) for p in parse(doc).params}
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    required: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    arguments = [*positional, *init.args.kwonlyargs]
    options = []
    for argument, default in zip(arguments, [*required, *init.args.defaults, *init.args.kw_defaults], strict=True):
        try:
            value = REQUIRED if default is None else ast.literal_eval(default)
        except ValueError:
            raise UserError(
                f"the default of {argument.arg} in {path} is {ast.unparse(default or argument)}; write a literal, "
                "which can be read without running the file"
            ) from None
        annotation = ast.unparse(argument.annotation) if argument.annotation else "str"
        options.append(Option(argument.arg, annotation, value, helps.get(argument.arg, "")))
    return tuple(options)


def _members(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [*_members(annotation.left), *_members(annotation.right)]
    return [annotation]
