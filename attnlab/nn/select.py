"""Narrower projections: some of the heads that stand side by side in one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn


def validate_indices(chosen: Iterable[int], count: int, what: str = "head") -> list[int]:
    """The chosen ones of ``count``, in ascending order; else TypeError or ValueError with what was given."""
    given = list(chosen)
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"a {what} is chosen by a whole number, not by {number!r}")
        if not 0 <= number < count:
            raise ValueError(f"there is no {what} {number}; there are {count}, counted from 0")
    if len(set(given)) < len(given):
        raise ValueError(f"a {what} is named twice in {given}")
    return sorted(given)


def head_channels(heads: Sequence[int], width: int) -> list[int]:
    """The places of these heads where all stand side by side, ``width`` numbers each."""
    return [head * width + i for head in heads for i in range(width)]


def select_features(layer: nn.Linear, *, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
    """Leave these rows (what comes out) and these columns (what goes in) of a projection, in place."""
    weight, bias = layer.weight, layer.bias
    if rows is not None:
        weight = weight[rows]
        if bias is not None:
            layer.bias = nn.Parameter(bias[rows], bias.requires_grad)
    if columns is not None:
        weight = weight[:, columns]
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.out_features, layer.in_features = weight.shape
