"""Selection of heads from projections whose features are grouped by head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def validate_indices(indices: Iterable[int], count: int, what: str = "head") -> list[int]:
    """Return the indices in ascending order.

    Raises:
        TypeError: for an index that is not an integer.
        ValueError: for an index that is not in ``range(count)``, or that is repeated.
    """
    indices = list(indices)
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"a {what} must be an integer, not {index!r}")
        if not 0 <= index < count:
            raise ValueError(f"there is no {what} {index}; there are {count}, counted from 0")
    if len(set(indices)) < len(indices):
        raise ValueError(f"a {what} is repeated in {indices}")
    return sorted(indices)


def head_channels(heads: Sequence[int], width: int) -> list[int]:
    """Return the features of these heads, ``width`` per head."""
    return [head * width + i for head in heads for i in range(width)]


def select_features(layer: nn.Linear, *, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
    """Keep these rows (output features) and columns (input features) of a projection, in place."""
    weight, bias = layer.weight, layer.bias
    if rows is not None:
        weight = weight[rows]
        if bias is not None:
            layer.bias = nn.Parameter(bias[rows], bias.requires_grad)
    if columns is not None:
        weight = weight[:, columns]
    layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
    layer.out_features, layer.in_features = weight.shape


def select_channels(parameter: Tensor, channels: list[int]) -> nn.Parameter:
    """Return a parameter with these entries of the first axis."""
    return nn.Parameter(parameter[channels], parameter.requires_grad)
