"""Checks of the arguments of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.utils.tracing import can_inspect_values, has_values


def check_int(name: str, value: object, *, at_least: int = 1) -> None:
    """Raise ValueError if ``value`` is not an integer of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def require_tensor(name: str, value: object) -> None:
    """Raise TypeError if ``value`` is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; make one with torch.tensor(...)")


def as_int64(name: str, tensor: Tensor, *shapes: tuple[str, ...]) -> Tensor:
    """Return an integer tensor with one of these lists of axes as int64: smaller types would overflow in sums.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: for another dtype or number of axes.
    """
    require_tensor(name, tensor)
    is_integer = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not is_integer or tensor.dim() not in map(len, shapes):
        wanted = " or ".join(f"({', '.join(axes)}{',' if len(axes) == 1 else ''})" for axes in shapes)
        raise ValueError(
            f"{name} must hold integers of shape {wanted}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.long()


def as_lengths(name: str, tensor: Tensor) -> Tensor:
    """Return one integer of at least 0 per batch item as int64."""
    lengths = as_int64(name, tensor, ("batch",))
    if can_inspect_values(lengths) and lengths.numel() and (least := int(lengths.min())) < 0:
        raise ValueError(f"{name} must hold integers of at least 0, got {least}")
    return lengths


def short(value: int | Tensor) -> str:
    """Return the value as text; the shape only for a tensor that is large or holds no values."""
    if not isinstance(value, Tensor):
        return str(value)
    return str(value.tolist()) if value.numel() <= 8 and has_values(value) else f"<{'x'.join(map(str, value.shape))}>"
