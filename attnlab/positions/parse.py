"""Positional encodings from text: ``rotary``, or ``rotary(base=500000, scaling=linear, factor=4)``."""

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
    "rotary": ("base", "rotary_fraction", "layout", "scaling", "factor", "original_max_length"),
    "alibi": (),
    "t5": ("num_buckets", "max_distance"),
}
"""The settings of each encoding; values are numbers or bare words."""

ALIASES = {"rope": "rotary"}

SETTING_ALIASES = {
    "share": "rotary_fraction",
    "original": "original_max_length",
    "buckets": "num_buckets",
    "longest": "max_distance",
}
"""Spellings of version 0.1, accepted for one more version."""


def parse_positions(
    positions: str | Positions,
    *,
    num_heads: int,
    head_dim: int,
    causal: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Positions:
    """Return the positional encoding that ``positions`` describes, for a layer of this kind.

    Args:
        positions: ``none``, ``rotary`` (or ``rope``), ``alibi`` or ``t5``, with the settings of their papers or with
            other settings in brackets: ``rotary(base=500000, rotary_fraction=0.5, layout=interleaved)``,
            ``rotary(scaling=yarn, factor=4, original_max_length=2048)``, ``t5(num_buckets=16, max_distance=64)``; or an
            instance, which is used as it is if it fits.
        num_heads: H of the layer.
        head_dim: d of the layer.
        causal: whether queries attend only to earlier keys.
        device: the device of learned parameters.
        dtype: the dtype of learned parameters.

    Raises:
        TypeError: for another type, or a setting of the wrong type.
        ValueError: for text that cannot be parsed, an unknown name or setting, a value out of range, or an instance
            that was made for another layer.
    """
    if isinstance(positions, Positions):
        positions.validate(num_heads=num_heads, head_dim=head_dim, causal=causal)
        return positions
    if not isinstance(positions, str):
        raise TypeError(f"positions must be a str or an attnlab.positions.Positions, not {type(positions).__name__}")
    name, settings = _parse(positions)
    if name == "rotary":
        return Rotary(head_dim, scaling=_pop_scaling(settings), **settings)
    if name == "alibi":
        return ALiBi(num_heads)
    if name == "t5":
        return T5Bias(num_heads, causal=causal, device=device, dtype=dtype, **settings)
    return Positions()


def _pop_scaling(settings: dict[str, Any]) -> Scaling | None:
    options = {key: settings.pop(key) for key in ("scaling", "factor", "original_max_length") if key in settings}
    if not options:
        return None
    kind = options.pop("scaling", None)
    if kind is None:
        raise ValueError(f"{' and '.join(options)} in rotary(...) need a scaling; add scaling=linear, ntk or yarn")
    if "factor" not in options:
        raise ValueError(f"scaling={kind} in rotary(...) needs factor=, the ratio of the new length to the trained one")
    return Scaling(kind, **options)


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(_usage(text)) from None
    function, keywords = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    if not isinstance(function, ast.Name):
        raise ValueError(_usage(text))
    name = ALIASES.get(function.id, function.id)
    if name not in SETTINGS:
        raise ValueError(_usage(text, function.id))
    if isinstance(tree, ast.Call) and (tree.args or any(keyword.arg is None for keyword in keywords)):
        raise ValueError(f"settings are NAME=VALUE, such as rotary(base=500000); not {reprlib.repr(text)}")
    settings: dict[str, Any] = {}
    for keyword in keywords:
        setting = SETTING_ALIASES.get(str(keyword.arg), str(keyword.arg))
        if setting in settings:
            raise ValueError(f"{name}(...) sets {setting} twice")
        _check_known(name, setting)
        settings[setting] = _value(keyword)
    return name, settings


def _check_known(name: str, setting: str) -> None:
    known = SETTINGS[name]
    if setting not in known:
        near = nearest(setting, known)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(known)}" if known else "it has no settings"
        raise ValueError(f"{name} has no setting {setting}; {hint}")


def _value(keyword: ast.keyword) -> Any:
    """A literal, or a bare word as a string."""
    if isinstance(keyword.value, ast.Name):
        return keyword.value.id
    try:
        return ast.literal_eval(keyword.value)
    except (ValueError, TypeError):
        raise ValueError(
            f"{keyword.arg} takes a number or a word, not {reprlib.repr(ast.unparse(keyword.value))}"
        ) from None


def _usage(text: str, name: str = "") -> str:
    near = nearest(name, (*SETTINGS, *ALIASES)) if name else ""
    return (
        "positions is none, rotary, alibi or t5, or one of these with settings, such as rotary(base=500000); "
        f"not {reprlib.repr(text)}" + (f"; did you mean {near}?" if near else "")
    )
