"""The value of a cost formula of a card, such as ``n·(w + g)·d + n·d²``, for one layer at one length."""

from __future__ import annotations

import ast
import inspect
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from attnlab.nn.mixer import SequenceMixer

OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def letters(mechanism: type[SequenceMixer]) -> dict[str, str]:
    """The letters in the formulas of a card and the options that they stand for, as the docstring of the mechanism
    defines them: ``w`` for ``window: w, the number of keys ...``.
    """
    doc = inspect.getdoc(mechanism) or ""
    pairs = re.findall(r"^ +(\w+): (\w+), ", doc.partition("\nArgs:\n")[2], flags=re.MULTILINE)
    return {letter: option for option, letter in pairs if len(letter.partition("_")[0]) == 1}


def evaluate(cost: str, layer: SequenceMixer, length: int) -> float:
    """The value of ``cost`` for this layer; n is the length, d the width and h the number of heads.

    Raises:
        ValueError: the docstring does not define a letter.
    """
    values: dict[str, Any] = {"n": length, "d": layer.embed_dim, "h": layer.num_heads}
    for letter, option in letters(type(layer)).items():
        values.setdefault(letter, getattr(layer, option, None))
    text = cost.replace("·", "*").replace("²", "**2").replace("³", "**3")
    text = re.sub(r"(\d)([a-z(])", r"\1*\2", text)
    return _number(ast.parse(text, mode="eval").body, values, cost)


def exponent(cost: str, layer: SequenceMixer, lengths: tuple[int, ...]) -> float:
    """The exponent of the length with which the cost grows from the first length to the last."""
    first, last = (evaluate(cost, layer, n) for n in (lengths[0], lengths[-1]))
    return math.log(last / first) / math.log(lengths[-1] / lengths[0])


def _number(node: ast.expr, values: Mapping[str, Any], cost: str) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_number(node.left, values, cost), _number(node.right, values, cost))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and isinstance(value := values.get(node.id), int | float):
        return value
    raise ValueError(f"{cost!r}: {ast.unparse(node)} is neither n, d, h nor a letter that the docstring defines")
