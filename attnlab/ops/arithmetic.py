"""The arithmetic of one attention weight: a short Python program, line by line, with its values.

A map describes its weights by functions that add lines: what is given (a query, a key), and what is computed from it.

Axes: H heads, M keys, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_LISTED = 64
"""The largest number of keys of a row that are listed one by one."""


class Cell(NamedTuple):
    """The place of an attention weight."""

    batch: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class Line:
    """``name = code`` in Python, its value, and what it is."""

    name: str
    code: str
    value: float | list[float]
    meaning: str


class Arithmetic:
    """A program of one statement per line, over the names of earlier lines and ``math``.

    Names are returned with the suffix of the `part`; a line refers to earlier ones by the returned names.
    """

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._namespace: dict[str, Any] = {"math": math}
        self._suffix = ""

    def given(self, name: str, value: Tensor | float | list[float], meaning: str) -> str:
        """Add a number or a list of numbers, and return its name."""
        if isinstance(value, Tensor):
            value = value.detach().double().tolist()
        return self.compute(name, _literal(value), meaning)

    def compute(self, name: str, code: str, meaning: str) -> str:
        """Add a line, evaluate it, and return its name.

        Raises:
            ValueError: for a name that exists.
        """
        name += self._suffix
        if name in self._namespace:
            raise ValueError(f"the arithmetic has two lines named {name}")
        value = eval(code, self._namespace)
        self._namespace[name] = value
        self._lines.append(Line(name, code, value, meaning))
        return name

    def part(self, suffix: str) -> Arithmetic:
        """Return a view that adds its lines to this program, with names that end in ``suffix``."""
        part = Arithmetic()
        part._lines, part._namespace, part._suffix = self._lines, self._namespace, self._suffix + suffix
        return part

    def value(self, name: str) -> Any:
        """Return the value of an earlier line."""
        return self._namespace[name]

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines, in order."""
        return tuple(self._lines)

    @property
    def last(self) -> str:
        """The name of the last line."""
        return self._lines[-1].name

    @property
    def result(self) -> float:
        """The value of the last line: the attention weight."""
        value = self._lines[-1].value
        assert isinstance(value, float)
        return value

    def python(self) -> str:
        """Return a program that prints the result."""
        lines = [f"# {line.meaning}\n{line.name} = {line.code}" for line in self._lines]
        return "\n".join(["import math", "", *lines, f"print({self.last})", ""])


def other_keys(count: int) -> str:
    """Return "the other key" or "the other N keys"."""
    return "the other key" if count == 1 else f"the other {count} keys"


@dataclass(frozen=True)
class Row:
    """The scores of one query in every head, and the key whose weight is explained.

    Args:
        cell: the place of the weight.
        score: the name of the score of the key, before the mask.
        scores: (H, M).
        allowed: which keys the query attends to, (H, M).
        reason: why a key that is not allowed is left out.
    """

    cell: Cell
    score: str
    scores: Tensor
    allowed: Tensor
    reason: str

    @property
    def is_masked(self) -> bool:
        """Whether the key is left out in this head."""
        return not self.allowed[self.cell.head, self.cell.key]

    def others(self) -> Tensor:
        """Return the scores of the other allowed keys in this head, in the order of the keys, in float64."""
        keep = self.allowed[self.cell.head].clone()
        keep[self.cell.key] = False
        return self.scores[self.cell.head, keep].detach().double()


def dot_product(a: Arithmetic, q: Tensor, k: Tensor, head: int, *, scale: float | None = None) -> str:
    """Add the lines of ``q · k`` times the scale, 1/√d by default; return the name of the score."""
    q_name = a.given("q", q, "the query, after any rotation by its position")
    k_name = a.given("k", k, "the key, after any rotation by its position")
    products = a.compute("products", f"[x * y for x, y in zip({q_name}, {k_name})]", "the products of their features")
    dot = a.compute("dot", f"sum({products})", "q · k")
    if scale is None:
        return a.compute("scaled", f"{dot} / math.sqrt({len(q)})", f"divided by √d; a head has d = {len(q)} features")
    return a.compute("scaled", f"{dot} * {scale!r}", f"times the scale, {scale:.6g}")


def softmax(a: Arithmetic, row: Row, sink: Tensor | None = None) -> None:
    """Add the lines of the softmax over the allowed keys, of which the key is one; the sinks are (H,)."""
    score, others, count = row.score, row.others(), row.allowed.shape[1]
    left_out = count - len(others) - 1
    meaning = f"the scores of {other_keys(len(others))} that the query attends to"
    if left_out:
        meaning += f"; {left_out} of the {count} keys are left out"
    if len(others) > MAX_LISTED:
        largest = others.topk(MAX_LISTED - 1)
        rest = torch.ones_like(others, dtype=torch.bool).index_fill(0, largest.indices, False)
        others = torch.cat([largest.values, others[rest].logsumexp(0, keepdim=True)])
        meaning += f" (the {MAX_LISTED - 1} largest, and the logarithm of the sum of the exponentials of the rest)"
    rest_name = a.given("others", others, meaning)
    names = [score]
    if sink is not None:
        names.append(a.given("sink", sink[row.cell.head], "the sink: a logit that takes weight and has no value"))
    top = a.compute("top", f"max([{', '.join(names)}, *{rest_name}])", "the largest, subtracted against overflow")
    shifted = a.compute("shifted", f"{score} - {top}", "the score minus the largest")
    exponential = a.compute("exponential", f"math.exp({shifted})", "the numerator of the softmax")
    terms = [exponential, *(f"math.exp({name} - {top})" for name in names[1:])]
    total = " + ".join([*terms, f"sum(math.exp(s - {top}) for s in {rest_name})"])
    total = a.compute("total", total, "the denominator: the sum of the exponentials of the row")
    a.compute("weight", f"{exponential} / {total}", "the attention weight")


def sigmoid(a: Arithmetic, name: str, x: str, meaning: str) -> str:
    """Add the line ``name = σ(x)`` and return the name."""
    is_low = a.value(x) < -700.0  # 1 / (1 + exp(-x)) would overflow
    return a.compute(name, f"math.exp({x})" if is_low else f"1 / (1 + math.exp(-{x}))", meaning)


def masked(a: Arithmetic, row: Row) -> None:
    """Add the line of a key that is not allowed: its weight is zero."""
    nothing = "" if row.allowed[row.cell.head].any() else "; no key of this row is allowed, so all its weights are zero"
    a.compute("weight", "math.exp(-math.inf)", f"{row.reason}: its score is replaced by −∞, and exp(−∞) = 0{nothing}")


def _literal(value: float | list[float]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if math.isfinite(value):
        return repr(float(value))
    return "math.nan" if math.isnan(value) else "math.inf" if value > 0 else "-math.inf"
