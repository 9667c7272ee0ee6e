"""What a target can be built with and called with, read from its signatures and attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.nn.mixer import SequenceMixer
from attnlab.utils.errors import UserError

# Widths and numbers of heads to build with; the first that the constructor accepts is used, and None keeps its default
# heads. Three heads of 4 make every axis a distinct size, so that a swapped pair is detected.
SIZES = ((12, 3), (24, 6), (32, None), (64, None))
WIDTHS = ("embed_dim", "emd_dim", "d_model", "dim", "hidden_size", "n_embd")
HEADS = ("num_heads", "n_heads", "nhead", "heads", "n_head")


def first_line(error: BaseException) -> str:
    """The type and the first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def unwrap(target: Any) -> Any:
    """The function or class inside of `functools.partial`."""
    while isinstance(target, partial):
        target = target.func
    return target


def bound_options(target: Any) -> dict[str, Any]:
    """The options that a `functools.partial` sets."""
    return {**bound_options(target.func), **target.keywords} if isinstance(target, partial) else {}


def parameters(function: Callable[..., Any]) -> list[str]:
    """The parameters that are still free; a class that passes ``**options`` on has those of its base class too."""
    try:
        signature = inspect.signature(function).parameters
    except ValueError:  # a callable without a signature
        return []
    names = list(signature)
    kind = unwrap(function)
    is_open = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    if isinstance(kind, type) and is_open and kind.__base__ not in (None, nn.Module, object):
        names += parameters(kind.__base__)
    return [name for name in names if name not in bound_options(function)]


def fitting_sizes(
    name: str, make: Callable[..., nn.Module], accepts: Collection[str], embed_dim: int | None
) -> dict[str, Any]:
    """The sizes to build with: ``embed_dim``, or the first of `SIZES` that the constructor accepts.

    Raises:
        UserError: the layer cannot be built, or is no nn.Module.
    """
    width = next((known for known in WIDTHS if known in accepts), None)
    heads = next((known for known in HEADS if known in accepts), None)
    trials: list[dict[str, Any]] = [{}]
    if width and embed_dim:
        trials = [{width: embed_dim}]
    elif width:
        trials = [{width: D, **({heads: H} if heads and H else {})} for D, H in SIZES]
    reasons = []
    for sizes in trials:
        try:
            layer = make(**sizes)
        except Exception as error:  # reported below, whatever it is
            reasons.append(first_line(error))
            continue
        if not isinstance(layer, nn.Module):
            raise UserError(f"{name} makes a {type(layer).__name__}, not an nn.Module")
        return sizes
    hint = "; pass its options, or a function that makes the layer" if reasons[0].startswith("TypeError") else ""
    raise UserError(f"{name} cannot be built: {reasons[0]}{hint}")


def place(name: str, make: Callable[[], nn.Module], device: torch.device | str) -> tuple[nn.Module, torch.device]:
    """A layer on ``device``; raises a UserError if it cannot be copied or moved."""
    try:
        layer = make()
    except Exception as error:
        raise UserError(f"{name} cannot be copied: {first_line(error)}") from None
    try:
        return layer.to(device), torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{name} cannot run on {device}: {first_line(error)}") from None


def require_single_argument(name: str, layer: nn.Module) -> None:
    """Raise a UserError unless ``layer(x)`` is a valid call."""
    try:
        inspect.signature(layer.forward).bind(object())
    except TypeError as error:
        raise UserError(f"{name}.forward cannot be called with x alone ({error}); pass call=") from None


def head_count(layer: nn.Module) -> int:
    """The number of heads, read from an attribute with one of the usual names; 1 if there is none."""
    return next((heads for name in HEADS if isinstance(heads := getattr(layer, name, None), int)), 1)


def layer_width(name: str, layer: nn.Module, options: dict[str, Any]) -> int:
    """The width of the tokens, read from the options or from an attribute; raises a UserError if it is not known."""
    for known in WIDTHS:
        width = options.get(known, getattr(layer, known, None))
        if isinstance(width, int):
            return width
    raise UserError(f"the width of the tokens of {name} is not known; pass embed_dim")


def reference_beside(kind: type) -> Callable[..., Tensor] | None:
    """The function ``reference`` of the module ``reference`` beside the class, or beside one of its base classes."""
    for parent in kind.__mro__:
        package = parent.__module__.rpartition(".")[0]
        if issubclass(parent, SequenceMixer) and package not in ("", "attnlab") and find_spec(f"{package}.reference"):
            function: Callable[..., Tensor] = import_module(f"{package}.reference").reference
            return function
    return None
