"""Heads taken out for good, or changed while one looks at what they are worth.

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
    """A layer, or a network, without some of its heads: smaller and faster, with what they added taken as zero.

    The one given stays as it is, so that the two can be compared; to train on, give the new one's parameters to a new
    optimizer. A network is saved and loaded as it was pruned. To name the heads that stay instead, see `keep_heads` of
    both.

    Args:
        target: a `MultiHeadBase`, or a `Network` of such.
        heads: which go, counted from 0; of a network by layer, ``{layer: heads}``.

    Returns:
        A copy without them, in the mode, on the device and of the dtype of ``target``.

    Raises:
        TypeError: for a mechanism without heads, or a number that is not whole.
        ValueError: for a layer or a head that is not there, all heads of a layer, or heads of keys that would be read
            by unequal numbers of heads.
    """
    if not isinstance(target, Network):
        return as_multihead(target).keep_heads(_others(target, heads))
    if not isinstance(heads, Mapping):
        raise TypeError(f"the heads of a network are named by layer, {{layer: heads}}, not as {heads!r}")
    layers = target.mechanisms()
    there = validate_indices(heads, len(layers), "layer")
    return target.keep_heads({layer: _others(as_multihead(layers[layer]), heads[layer]) for layer in there})


@contextmanager
def edit_heads(layer: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this is open, what the heads of ``layer`` give goes through ``edit`` before W_O mixes it.

    Args:
        layer: a `MultiHeadBase`.
        edit: from (B, N, H, d) to the same. A padded batch may come as one row of its real tokens.

    Raises:
        UnsupportedError: for a mechanism without heads; for one that went past ``edit``.
    """
    attention, calls, edits = as_multihead(layer), 0, 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def through(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal edits
        edits += 1
        heads = given[0].unflatten(-1, (attention.num_heads, attention.head_dim))
        return (edit(heads).flatten(-2), *given[1:])

    handles = [attention.register_forward_pre_hook(count), attention.output.register_forward_pre_hook(through)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if edits < calls:
        raise UnsupportedError(
            f"{type(layer).__name__} does not give its heads to self.output, where they could be edited"
        )


def _others(layer: MultiHeadBase, heads: Iterable[int]) -> list[int]:
    gone = set(validate_indices(heads, layer.num_heads))
    return [head for head in range(layer.num_heads) if head not in gone]
