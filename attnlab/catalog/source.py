"""Read the attributes and options of a class from its source text: importing torch would delay ``--help`` by seconds.

Only literals are read and nothing is executed, so that a file that cannot be imported can still be listed.
"""

from __future__ import annotations

import ast
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attnlab.utils.errors import UserError

REQUIRED: Any = object()
"""The default of a required option."""


@dataclass(frozen=True)
class Option:
    """One argument of a constructor; the annotation is source text."""

    name: str
    annotation: str
    default: Any
    help: str

    @property
    def annotation_parts(self) -> list[str]:
        """The members of a union ``A | B | C``."""
        parts, left = [], ast.parse(self.annotation, mode="eval").body
        while isinstance(left, ast.BinOp) and isinstance(left.op, ast.BitOr):
            parts.append(left.right)
            left = left.left
        return [ast.unparse(part) for part in (left, *reversed(parts))]

    @property
    def kinds(self) -> list[Any]:
        """The types in `annotation_parts` that can be parsed from text; a class of the mechanism cannot."""
        return [kind for part in self.annotation_parts if (kind := _named_type(part)) is not _UNKNOWN]


@dataclass(frozen=True)
class ClassSource:
    """The source text of a class.

    ``attributes`` contains the literal class attributes, and the keywords of those that are calls with
    literal keywords, such as ``card = Card(title=...)``. ``renamed`` contains the arguments of
    ``@renamed_options(old="new")``.
    """

    name: str
    path: Path
    doc: str
    attributes: dict[str, Any]
    options: tuple[Option, ...]
    renamed: dict[str, str]


def read_class(path: Path, attribute: str) -> ClassSource:
    """Return the first class in the file at ``path`` whose body sets ``attribute``.

    Raises:
        UserError: if the file cannot be parsed, has no such class, or has an option whose default is not a literal.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            attributes = _attributes(node)
            if attribute in attributes:
                doc = ast.get_docstring(node) or ""
                return ClassSource(node.name, path, doc, attributes, _options(node, doc, path), _renamed(node))
    raise UserError(f"{path} has no class with `{attribute} = ...` in its body, written with literals only")


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        try:
            if isinstance(value, ast.Call):
                found[target.id] = {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
            else:
                found[target.id] = ast.literal_eval(value)
        except ValueError:  # not a literal
            continue
    return found


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _renamed(node: ast.ClassDef) -> dict[str, str]:
    init = _constructor(node)
    calls = [d for d in init.decorator_list if isinstance(d, ast.Call)] if init else []
    return {
        str(k.arg): k.value.value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "renamed_options"
        for k in call.keywords
        if isinstance(k.value, ast.Constant) and isinstance(k.value.value, str)
    }


def _options(node: ast.ClassDef, doc: str, path: Path) -> tuple[Option, ...]:
    init = _constructor(node)
    if init is None:
        return ()
    helps = _helps(doc)
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    pairs = [
        *zip(positional, [*defaults, *init.args.defaults], strict=True),
        *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True),
    ]
    return tuple(
        Option(
            name=argument.arg,
            annotation=ast.unparse(argument.annotation) if argument.annotation else "str",
            default=REQUIRED if default is None else _literal(default, argument.arg, path),
            help=helps.get(argument.arg, ""),
        )
        for argument, default in pairs
    )


_UNKNOWN = object()


def _named_type(annotation: str) -> Any:
    """Return the type if it is a builtin or a Literal; else `_UNKNOWN`."""
    names = {"Literal": Literal, "Optional": typing.Optional, "Sequence": Sequence}
    names |= {kind.__name__: kind for kind in (int, float, bool, str)}
    try:
        return eval(annotation, {"__builtins__": {}}, names)
    except Exception:
        return _UNKNOWN


def _literal(default: ast.expr, name: str, path: Path) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        raise UserError(
            f"the default of {name} in {path} is {ast.unparse(default)}; write a literal, which can be read "
            "without running the file"
        ) from None


def _helps(doc: str) -> dict[str, str]:
    from docstring_parser import parse

    return {p.arg_name: " ".join((p.description or "").split()) for p in parse(doc).params}
