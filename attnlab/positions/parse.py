"""Positions from words: ``rotary``, or ``rotary(base=500000, scaling=linear, factor=4)``."""

from __future__ import annotations

import ast
import reprlib
from typing import Any

import torch

from attnlab.positions.base import Positions
from attnlab.positions.biases import ALiBi, T5Bias
from attnlab.positions.rotary import Rotary, Scaling
from attnlab.utils.errors import nearest

SETTINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "rotary": ("base", "share", "layout", "scaling", "factor", "original"),
    "alibi": (),
    "t5": ("buckets", "longest"),
}
"""What the words may set; the values are numbers and bare words."""


def make(
    positions: str | Positions,
    *,
    num_heads: int,
    head_dim: int,
    causal: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Positions:
    """The positions that are meant, for a layer of this kind.

    Args:
        positions: ``none``, ``rotary``, ``alibi`` or ``t5``, as their papers set them, or with settings in brackets:
            ``rotary(base=500000, share=0.5, layout=interleaved)``, ``rotary(scaling=yarn, factor=4, original=2048)``,
            ``t5(buckets=16, longest=64)``; or an instance, which is taken as it is where it fits.
        num_heads: H of the layer.
        head_dim: d of the layer.
        causal: whether the layer never looks ahead.
        device: where learned positions are made.
        dtype: of learned positions.

    Raises:
        TypeError: for what is neither, or a setting of another type.
        ValueError: for words that cannot be read, a name or a setting that does not exist, a value that cannot be, or
            an instance that was made for another layer.
    """
    if isinstance(positions, Positions):
        positions.fit(num_heads=num_heads, head_dim=head_dim, causal=causal)
        return positions
    if not isinstance(positions, str):
        raise TypeError(f"positions are words or an attnlab.positions.Positions, not {type(positions).__name__}")
    name, given = _read(positions)
    if name == "rotary":
        return Rotary(head_dim, scaling=_scaling(given), **given)
    if name == "alibi":
        return ALiBi(num_heads)
    if name == "t5":
        return T5Bias(num_heads, causal=causal, device=device, dtype=dtype, **given)
    return Positions()


def _scaling(given: dict[str, Any]) -> Scaling | None:
    """Take the settings of a scaling out of ``given``."""
    found = {name: given.pop(name) for name in ("scaling", "factor", "original") if name in given}
    if not found:
        return None
    kind = found.pop("scaling", None)
    if kind is None:
        raise ValueError(f"{' and '.join(found)} in rotary(...) belong to a scaling; add scaling=linear, ntk or yarn")
    if "factor" not in found:
        raise ValueError(f"scaling={kind} in rotary(...) needs factor=, how many times as long as in training")
    return Scaling(kind, **found)


def _read(words: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings."""
    try:
        tree = ast.parse(words.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(_possible(words)) from None
    called, settings = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    if not isinstance(called, ast.Name) or called.id not in SETTINGS:
        raise ValueError(_possible(words))
    if isinstance(tree, ast.Call) and (tree.args or any(setting.arg is None for setting in settings)):
        raise ValueError(f"settings are NAME=VALUE, such as rotary(base=500000); not {reprlib.repr(words)}")
    given: dict[str, Any] = {}
    for setting in settings:
        name = str(setting.arg)
        if name in given:
            raise ValueError(f"{called.id}(...) sets {name} twice")
        _check_known(called.id, name)
        given[name] = _value(setting)
    return called.id, given


def _check_known(name: str, setting: str) -> None:
    known = SETTINGS[name]
    if setting not in known:
        near = nearest(setting, known)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"{name} has no setting {setting}; {hint}")


def _value(setting: ast.keyword) -> Any:
    """A literal, or a bare word."""
    if isinstance(setting.value, ast.Name):
        return setting.value.id
    try:
        return ast.literal_eval(setting.value)
    except (ValueError, TypeError):
        raise ValueError(
            f"{setting.arg} takes a number or a word, not {reprlib.repr(ast.unparse(setting.value))}"
        ) from None


def _possible(words: str) -> str:
    return (
        "positions is none, rotary, alibi or t5, or one of these with settings, such as rotary(base=500000); "
        f"not {reprlib.repr(words)}"
    )
