"""What a layer has already seen, for decoding step by step.

Axes: B batch, H heads, N new tokens, L tokens kept, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST = 64
"""Tokens that a cache makes room for at first; it then grows by doubling."""


class Cache:
    """Keys and values of one attention layer, in memory that is written in place and read without a copy.

    With a cache, ``layer(x, cache=cache)`` takes the new tokens alone and gives what the full pass would give them:
    a prompt at once, then token by token, in whatever pieces.

    Args:
        capacity: the most tokens that may be seen.
        window: keep only the last so many tokens, for a mask that looks no further back (``window(size)``).

    Raises:
        ValueError: for a capacity or a window below one.
    """

    def __init__(self, capacity: int, *, window: int | None = None) -> None:
        for name, value in {"capacity": capacity, "window": window}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.capacity, self.window = capacity, window
        self.length = 0
        """Tokens seen."""
        self.first = 0
        """The position of the first token that is still kept."""
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def kept(self) -> int:
        """L, the tokens that are kept."""
        return self.length - self.first

    @property
    def bytes(self) -> int:
        """The memory that is held."""
        return sum(t.nbytes for t in (self._keys, self._values) if t is not None)

    @property
    def bytes_per_token(self) -> int:
        """What one token of every batch item takes; 0 before the first."""
        if self._keys is None or self._values is None:
            return 0
        return (self._keys.nbytes + self._values.nbytes) // self._keys.shape[-2]

    def admit(self, x: Tensor) -> None:
        """Make room for new tokens (B, N, D), or refuse them.

        Raises:
            ValueError: when they are too many, of another batch or on another device.
        """
        N = x.shape[1]
        if self.length + N > self.capacity:
            raise ValueError(
                f"the cache has seen {self.length} of at most {self.capacity} tokens, and {N} more do not fit; "
                f"make it with Cache(capacity={self.length + N}) or more, or roll back"
            )
        if self._keys is None:
            return
        if len(self._keys) != len(x):
            raise ValueError(
                f"the cache holds {len(self._keys)} sequences, not {len(x)}; use select(), or reset() for a new batch"
            )
        if self._keys.device != x.device:
            raise ValueError(f"the cache lies on {self._keys.device}, the tokens on {x.device}; reset() it to move")
        self._make_room(N)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values.

        Args:
            keys: (B, H, N, d), or (B, N, d) for one head.
            values: the same.

        Returns:
            All keys and values that the new tokens may look at, (B, H, L, d); views, valid until the next call.

        Raises:
            ValueError: where a gradient is asked for, which memory written in place cannot give.
        """
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise ValueError("a cache gives no gradients; decode under torch.no_grad() or torch.inference_mode()")
        N = keys.shape[-2]
        if self._keys is None or self._values is None:
            room = min(max(FIRST, 2 * N), self.capacity)
            self._keys, self._values = _moved(None, keys, room), _moved(None, values, room)
        new = slice(self.kept, self.kept + N)
        self._keys[..., new, :], self._values[..., new, :] = keys, values
        self.length += N
        return self._keys[..., : self.kept, :], self._values[..., : self.kept, :]

    def rollback(self, tokens: int) -> None:
        """Forget the last ``tokens``, as if they had never been seen (speculative decoding).

        Raises:
            ValueError: for more than are kept; a window has already let go of what came before.
        """
        if not 0 <= tokens <= self.length:
            raise ValueError(f"rollback takes from 0 to {self.length} tokens, as many as were seen, not {tokens}")
        if self.window is not None and self.first and tokens > self.kept - (self.window - 1):
            raise ValueError(
                f"a cache with a window of {self.window} cannot forget {tokens} tokens: what would be looked at then "
                f"is gone; it can forget {max(0, self.kept - (self.window - 1))}"
            )
        self.length -= tokens

    @torch.inference_mode(False)
    @torch.no_grad()
    def select(self, items: Tensor) -> None:
        """Go on with these batch items in this order; one may come several times, or not at all (beam search).

        Args:
            items: (B',) whole numbers below B.
        """
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys.index_select(0, items), self._values.index_select(0, items)

    def reset(self) -> None:
        """Forget everything, and let go of the memory."""
        self.length = self.first = 0
        self._keys = self._values = None

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"Cache(capacity={self.capacity}{window}): {self.length} seen, {self.kept} kept, {self.bytes:,} bytes"

    def _make_room(self, new: int) -> None:
        """Double the memory, or let go of what a window has passed."""
        assert self._keys is not None
        assert self._values is not None
        room = self._keys.shape[-2]
        if self.kept + new <= room:
            return
        drop = 0 if self.window is None else min(max(0, self.kept - (self.window - 1)), self.kept)
        need = self.kept - drop + new
        if 2 * need > room:
            room = min(max(room, 2 * need), self.capacity)
        kept = slice(drop, self.kept)
        self._keys = _moved(self._keys[..., kept, :], self._keys, room)
        self._values = _moved(self._values[..., kept, :], self._values, room)
        self.first += drop


@torch.inference_mode(False)
@torch.no_grad()
def _moved(kept: Tensor | None, like: Tensor, room: int) -> Tensor:
    """Fresh memory with what is kept at its beginning; of use inside and outside of inference mode."""
    new = like.new_empty(*like.shape[:-2], room, like.shape[-1])
    if kept is not None:
        new[..., : kept.shape[-2], :] = kept
    return new
