"""The caches of all layers of a network as one: keys and values, windows of them and recurrent states, mixed.

Axes: B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, overload

import torch
from torch import Tensor

from attnlab.nn.cache import DecodingCache, KVCache, unchanged_on_error


@dataclass(frozen=True)
class CacheSize:
    """The memory that the cache of one layer needs for one sequence, without memory that is allocated ahead.

    ``bytes_per_token`` is added for every token; ``bytes_per_sequence`` is constant: a recurrent state, or a window,
    which counts in full.
    """

    kind: Literal["keys and values", "window", "state"]
    bytes_per_token: int
    bytes_per_sequence: int


class LayerCaches(Sequence[DecodingCache]):
    """The caches of the layers of one network, first to last; a sequence of `DecodingCache`.

    Args:
        caches: one per layer.
    """

    def __init__(self, caches: Iterable[DecodingCache]) -> None:
        self._caches = list(caches)

    @overload
    def __getitem__(self, index: int) -> DecodingCache: ...
    @overload
    def __getitem__(self, index: slice) -> list[DecodingCache]: ...
    def __getitem__(self, index: int | slice) -> DecodingCache | list[DecodingCache]:
        """The cache of one layer."""
        return self._caches[index]

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._caches)

    @property
    def num_seen(self) -> int:
        """The number of tokens that were processed with these caches."""
        return self._caches[0].num_seen if self._caches else 0

    @property
    def bytes(self) -> int:
        """The allocated memory in bytes."""
        return sum(cache.bytes for cache in self)

    def sizes(self) -> list[CacheSize]:
        """Return the memory that each layer needs for one sequence.

        Raises:
            ValueError: before the first token, which decides the shapes.
        """
        if not self.num_seen:
            raise ValueError("the caches are empty; call the network with them first, then ask for their sizes")
        return [_size(cache) for cache in self]

    @property
    def bytes_per_token(self) -> int:
        """The memory that each token of one sequence adds, in all layers; see `sizes`."""
        return sum(size.bytes_per_token for size in self.sizes())

    @property
    def bytes_per_sequence(self) -> int:
        """The constant memory of one sequence, in all layers; see `sizes`."""
        return sum(size.bytes_per_sequence for size in self.sizes())

    def report(self) -> str:
        """Return a table of `sizes` by layer, with their total."""
        rows: list[tuple[int | str, str, int, int]] = [
            (i, size.kind, size.bytes_per_token, size.bytes_per_sequence) for i, size in enumerate(self.sizes())
        ]
        rows.append(("total", "", self.bytes_per_token, self.bytes_per_sequence))
        lines = [f"{'layer':<7}{'cache':<17}{'bytes per token':>15}{'bytes per sequence':>20}"]
        lines += [f"{layer:<7}{kind:<17}{token:>15,}{sequence:>20,}" for layer, kind, token, sequence in rows]
        return "\n".join(lines)

    def reorder(self, items: Tensor) -> None:
        """Select batch items in every layer, for beam search; an item may be repeated or left out.

        Args:
            items: (B',) integers below B.
        """
        with unchanged_on_error(*self):
            for cache in self:
                cache.reorder(items)

    def copy(self) -> Self:
        """Return independent caches with the same contents."""
        return type(self)(cache.copy() for cache in self)

    def reset(self) -> None:
        """Forget all tokens and free the memory."""
        for cache in self:
            cache.reset()

    def crop(self, length: int) -> None:
        """Keep the first ``length`` tokens in every layer and forget the later ones (speculative decoding).

        Raises:
            ValueError: if a layer cannot be taken back, because it keeps a recurrent state, or because its window has
                dropped tokens that would be needed again; all caches are then unchanged.
        """
        if states := [str(i) for i, cache in enumerate(self) if not isinstance(cache, KVCache)]:
            holders = f"layer {states[0]} keeps" if len(states) == 1 else f"layers {', '.join(states)} keep"
            raise ValueError(
                f"the caches cannot be cropped: {holders} a recurrent state, which has no earlier version; copy() the "
                "caches before tokens that may be rejected"
            )
        with unchanged_on_error(*self):
            for i, cache in enumerate(self):
                assert isinstance(cache, KVCache)
                try:
                    cache.crop(length)
                except ValueError as error:
                    raise ValueError(f"layer {i}: {error}") from None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the contents as tensors on the CPU that can be saved, to decode from them later."""
        return {
            f"{i}.{type(cache).__name__}.{name}": tensor
            for i, cache in enumerate(self)
            for name, tensor in cache.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Replace the contents by what `state_dict` returned for a network with the same layers.

        Raises:
            ValueError: for another number or kind of layers, or contents that do not fit; all caches are then
                unchanged.
        """
        parts: dict[str, dict[str, Tensor]] = {f"{i}.{type(cache).__name__}": {} for i, cache in enumerate(self)}
        for key, tensor in state.items():
            layer, _, name = key.rpartition(".")
            if layer not in parts:
                raise ValueError(f"{key!a:.60} is no part of these caches, which are {', '.join(parts)}")
            parts[layer][name] = tensor
        with unchanged_on_error(*self):
            for cache, (layer, part) in zip(self, parts.items(), strict=True):
                try:
                    cache.load_state_dict(part, device)
                except ValueError as error:
                    raise ValueError(f"{layer}: {error}") from None
            if len({cache.num_seen for cache in self}) > 1:
                raise ValueError(
                    f"the layers have seen {[cache.num_seen for cache in self]} tokens, not the same number"
                )

    def __repr__(self) -> str:
        return f"LayerCaches of {len(self)} layers: {self.num_seen} tokens seen, {self.bytes:,} bytes"


def _size(cache: DecodingCache) -> CacheSize:
    batch = max(cache.batch_size, 1)
    if not isinstance(cache, KVCache):
        return CacheSize("state", 0, cache.bytes // batch)
    token = cache.bytes_per_token // batch
    if cache.window is None:
        return CacheSize("keys and values", token, 0)
    return CacheSize("window", 0, cache.window * token)
