"""Pruning of attention heads, and temporary edits of their outputs.

Axes: B batch, N length, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from attnlab.network import Network
from attnlab.nn.attention import UnsupportedError
from attnlab.nn.multihead import MultiHeadBase, as_multihead
from attnlab.nn.select import validate_indices

L = TypeVar("L", bound=MultiHeadBase)


@overload
def prune_heads(target: L, heads: Iterable[int]) -> L: ...
@overload
def prune_heads(target: Network, heads: Mapping[int, Iterable[int]]) -> Network: ...
def prune_heads(target: Any, heads: Any) -> Any:
    """Return a copy of a layer or a network without some heads: smaller and faster, their contributions are zero.

    The original is unchanged. To continue training, give the parameters of the copy to a new optimizer. A pruned
    network is saved and loaded like any other. To choose the heads that stay, see ``keep_heads`` of both classes.

    Args:
        target: a `MultiHeadBase`, or a `Network` of such layers.
        heads: the indices of the heads to remove; for a network by layer, ``{layer: heads}``.

    Returns:
        The copy, in the mode, on the device and in the dtype of ``target``.

    Raises:
        TypeError: for an index that is not an integer.
        ValueError: for an index out of range or repeated, all heads of a layer, or groups of shared keys of unequal
            size.
        UnsupportedError: for a mechanism without separate heads.
    """
    if not isinstance(target, Network):
        return as_multihead(target).keep_heads(_others(target, heads))
    if not isinstance(heads, Mapping):
        raise TypeError(f"the heads of a network must be a dict by layer, {{layer: heads}}, not {heads!r}")
    layers = target.mechanisms()
    indices = validate_indices(heads, len(layers), "layer")
    return target.keep_heads({i: _others(as_multihead(layers[i]), heads[i]) for i in indices})


@contextmanager
def edit_heads(layer: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply ``edit`` to the outputs of the heads, before the output projection, inside the block.

    Args:
        layer: a `MultiHeadBase`.
        edit: a function of (B, N, H, d) that returns the same shape. A padded batch may be packed into one row.

    Raises:
        UnsupportedError: for a mechanism without separate heads, or whose forward does not call ``self.output``.
    """
    attention, calls, edits = as_multihead(layer), 0, 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def edit_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal edits
        edits += 1
        heads = inputs[0].unflatten(-1, (attention.num_heads, -1))
        return (edit(heads).flatten(-2), *inputs[1:])

    handles = [attention.register_forward_pre_hook(count), attention.output.register_forward_pre_hook(edit_input)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if edits < calls:
        raise UnsupportedError(
            f"{type(layer).__name__} does not pass its heads to self.output, where they would be edited"
        )


def _others(layer: MultiHeadBase, heads: Iterable[int]) -> list[int]:
    removed = set(validate_indices(heads, layer.num_heads))
    return [head for head in range(layer.num_heads) if head not in removed]
