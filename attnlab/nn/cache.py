"""What a layer has already seen, for decoding step by step.

Axes: B batch, H heads, N new tokens, L tokens kept, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor

FIRST = 64
"""Tokens that a cache makes room for at first; it then grows by doubling."""


class KVCache:
    """What one attention layer keeps of the tokens, in memory that is written in place and read without a copy.

    With a cache, ``layer(x, cache=cache)`` takes the new tokens alone and gives what the full pass would give them:
    a prompt at once, then token by token, in whatever pieces. A mechanism keeps something of every token (`update`:
    keys and values, or whatever it computes them from), or a state of constant size (`carry`: a recurrence).

    Args:
        capacity: the most tokens that may be seen.
        window: keep only the last so many tokens, for a mask that looks no further back (``sliding_window(size)``).

    Raises:
        ValueError: for a capacity or a window below one.
    """

    def __init__(self, capacity: int, *, window: int | None = None) -> None:
        for name, value in {"capacity": capacity, "window": window}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.capacity, self.window = capacity, window
        self.num_seen = 0
        """Tokens seen."""
        self.start = 0
        """The position of the first token that is still kept."""
        self.state: tuple[Tensor, ...] = ()
        """What a recurrence goes on with, batch first; empty before the first token."""
        self._memory: tuple[Tensor, ...] = ()

    @property
    def num_cached(self) -> int:
        """L, the tokens that are kept."""
        return self.num_seen - self.start

    @property
    def bytes(self) -> int:
        """The memory that is held."""
        return sum(t.nbytes for t in (*self._memory, *self.state))

    @property
    def bytes_per_token(self) -> int:
        """What one token of every batch item takes; 0 before the first, and for a state, which does not grow."""
        return sum(t.nbytes // t.shape[-2] for t in self._memory)

    def admit(self, x: Tensor) -> None:
        """Make room for new tokens (B, N, D), or refuse them.

        Raises:
            ValueError: when they are too many, of another batch or on another device.
        """
        N = x.shape[1]
        if self.num_seen + N > self.capacity:
            raise ValueError(
                f"the cache has seen {self.num_seen} of at most {self.capacity} tokens, and {N} more do not fit; "
                f"make it with KVCache(capacity={self.num_seen + N}) or more, or roll back"
            )
        for held in (*self._memory, *self.state)[:1]:
            if len(held) != len(x):
                raise ValueError(
                    f"the cache holds {len(held)} sequences, not {len(x)}; use reorder(), or reset() for a new batch"
                )
            if held.device != x.device:
                raise ValueError(f"the cache lies on {held.device}, the tokens on {x.device}; reset() it to move")
        if self._memory:
            self._make_room(N)

    def update(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep what new tokens bring: keys and values, or as many tensors as at the first time.

        Args:
            new: (B, H, N, d) each, or (B, N, d).

        Returns:
            The same of all tokens that the new ones may look at, L in place of N; views, valid until the next call.

        Raises:
            ValueError: where a gradient is asked for, which memory written in place cannot give; for tensors of another
                number, shape, dtype or device than those that are kept, or more tokens than were admitted. Nothing is
                written then.
        """
        _refuse_gradients(new)
        N = new[0].shape[-2]
        if any(t.shape[-2] != N for t in new):
            raise ValueError(f"every tensor must bring the same number of tokens, not {[t.shape[-2] for t in new]}")
        if not self._memory:
            room = min(max(FIRST, 2 * N), self.capacity)
            self._memory = tuple(_moved(None, t, room) for t in new)
        _check_alike(self._memory, new, lambda t: (*t.shape[:-2], t.shape[-1]))
        if self.num_cached + N > (room := self._memory[0].shape[-2]):
            raise ValueError(
                f"there is room for {room - self.num_cached} more tokens, not {N}; call admit() before update()"
            )
        at = slice(self.num_cached, self.num_cached + N)
        for memory, t in zip(self._memory, new, strict=True):
            memory[..., at, :] = t
        self.num_seen += N
        return tuple(memory[..., : self.num_cached, :] for memory in self._memory)

    def carry(self, tokens: int, *state: Tensor) -> None:
        """Keep the state after so many more tokens, in place of the one before.

        Args:
            tokens: N.
            state: tensors of constant size, batch first.

        Raises:
            ValueError: where a gradient is asked for: a state is for decoding; for tensors of another number, shape,
                dtype or device than the state before.
        """
        _refuse_gradients(state)
        if self.state:
            _check_alike(self.state, state, lambda t: t.shape)
        self.state = state
        self.num_seen += tokens

    def rollback(self, tokens: int) -> None:
        """Forget the last ``tokens``, as if they had never been seen (speculative decoding).

        Raises:
            ValueError: for more than are kept; a window has already let go of what came before, and a state cannot
                be taken back at all.
        """
        if not 0 <= tokens <= self.num_seen:
            raise ValueError(f"rollback takes from 0 to {self.num_seen} tokens, as many as were seen, not {tokens}")
        if self.state and tokens:
            raise ValueError(
                f"a state cannot forget its last {tokens} tokens; keep cache.copy() from before them, and go on with it"
            )
        if self.window is not None and self.start and tokens > self.num_cached - (self.window - 1):
            raise ValueError(
                f"a cache with a window of {self.window} cannot forget {tokens} tokens: what would be looked at then "
                f"is gone; it can forget {max(0, self.num_cached - (self.window - 1))}"
            )
        self.num_seen -= tokens

    @torch.inference_mode(False)
    @torch.no_grad()
    def reorder(self, items: Tensor) -> None:
        """Go on with these batch items in this order; one may come several times, or not at all (beam search).

        Args:
            items: (B',) whole numbers below B.
        """
        memory = tuple(t.index_select(0, items) for t in self._memory)
        self.state = tuple(t.index_select(0, items) for t in self.state)
        self._memory = memory

    @torch.inference_mode(False)
    @torch.no_grad()
    def copy(self) -> KVCache:
        """Return an independent cache with the same contents, of use inside and outside of inference mode."""
        other = copy(self)
        other._memory = tuple(t.clone() for t in self._memory)
        other.state = tuple(t.clone() for t in self.state)
        return other

    def reset(self) -> None:
        """Forget everything, and let go of the memory."""
        self.num_seen = self.start = 0
        self._memory = self.state = ()

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        kept = "a state" if self.state else f"{self.num_cached} kept"
        return f"KVCache(capacity={self.capacity}{window}): {self.num_seen} seen, {kept}, {self.bytes:,} bytes"

    def _make_room(self, new: int) -> None:
        """Double the memory, or let go of what a window has passed."""
        room = self._memory[0].shape[-2]
        if self.num_cached + new <= room:
            return
        drop = 0 if self.window is None else min(max(0, self.num_cached - (self.window - 1)), self.num_cached)
        need = self.num_cached - drop + new
        if 2 * need > room:
            room = min(max(room, 2 * need), self.capacity)
        kept = slice(drop, self.num_cached)
        self._memory = tuple(_moved(memory[..., kept, :], memory, room) for memory in self._memory)
        self.start += drop


@contextmanager
def unchanged_on_error(*caches: Any) -> Iterator[None]:
    """Leave these caches as they were where the block raises; what is not a `KVCache` is let be."""
    before = [(cache, dict(vars(cache))) for cache in caches if isinstance(cache, KVCache)]
    try:
        yield
    except BaseException:
        for cache, attributes in before:
            vars(cache).update(attributes)  # new tokens are written behind those that were kept
        raise


def _check_alike(kept: tuple[Tensor, ...], new: tuple[Tensor, ...], shape: Callable[[Tensor], tuple[int, ...]]) -> None:
    """Refuse tensors that cannot follow those that are kept; ``shape`` says what must agree."""
    if len(new) != len(kept):
        raise ValueError(f"the cache keeps {len(kept)} tensors per token, not {len(new)}; reset() it to change that")
    for number, (held, t) in enumerate(zip(kept, new, strict=True), 1):
        if held.dtype != t.dtype:
            raise ValueError(
                f"the cache holds {held.dtype} and got {t.dtype} (tensor {number} of {len(new)}); continue in the "
                "precision and under the autocast in which it was filled, or reset() it"
            )
        if held.device != t.device:
            raise ValueError(f"the cache lies on {held.device}, the new tensors on {t.device}; reset() it to move")
        if shape(held) != shape(t):
            raise ValueError(
                f"the cache holds tensors of shape {tuple(shape(held))} per token and got {tuple(shape(t))} (tensor "
                f"{number} of {len(new)}); use reorder() for another batch, or reset() it"
            )


def _refuse_gradients(new: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in new):
        raise ValueError("a cache gives no gradients; decode under torch.no_grad() or torch.inference_mode()")


@torch.inference_mode(False)
@torch.no_grad()
def _moved(kept: Tensor | None, like: Tensor, room: int) -> Tensor:
    """Fresh memory with what is kept at its beginning; of use inside and outside of inference mode."""
    new = like.new_empty(*like.shape[:-2], room, like.shape[-1])
    if kept is not None:
        new[..., : kept.shape[-2], :] = kept
    return new
