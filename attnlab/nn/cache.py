"""The caches of incremental decoding: keys and values of all tokens, or the state of a recurrence.

Axes: B batch, H heads, N new tokens, L cached tokens, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

INITIAL_LENGTH = 64
"""Tokens that a new cache allocates memory for; the memory then grows by doubling."""


class DecodingCache:
    """The base class of `KVCache` and `RecurrentState`: tensors, batch first, and the number of tokens seen."""

    def __init__(self) -> None:
        self.num_seen = 0
        """The number of tokens that were processed with this cache."""
        self.start = 0
        """The position of the first token that is kept; above 0 where a window has dropped tokens."""
        self._tensors: tuple[Tensor, ...] = ()
        self.is_loaded = False
        """Whether `load_state_dict` was called and no tokens were processed since, so that the state may not fit."""

    @property
    def batch_size(self) -> int:
        """B, the number of sequences; 0 before the first token."""
        return len(self._tensors[0]) if self._tensors else 0

    @property
    def bytes(self) -> int:
        """The allocated memory in bytes."""
        return sum(t.nbytes for t in self._tensors)

    @property
    def bytes_per_token(self) -> int:
        """The memory of one token for all batch items; 0 before the first token, and for a state of constant size."""
        return 0

    def admit(self, x: Tensor) -> None:
        """Check that new tokens (B, N, D) continue this cache, and allocate memory for them.

        Raises:
            ValueError: for another batch size or device, or for more tokens than the capacity.
        """
        if self._tensors:
            held = self._tensors[0]
            if len(held) != len(x):
                raise ValueError(
                    f"the cache holds {len(held)} sequences, not {len(x)}; use reorder(), or reset() for a new batch"
                )
            if held.device != x.device:
                raise ValueError(f"the cache is on {held.device}, x on {x.device}; reset() it to move")

    @torch.inference_mode(False)
    @torch.no_grad()
    def reorder(self, items: Tensor) -> None:
        """Select batch items, for beam search; an item may be repeated or left out.

        Args:
            items: (B',) integers below B.
        """
        self._tensors = tuple(t.index_select(0, items) for t in self._tensors)

    @torch.inference_mode(False)
    @torch.no_grad()
    def copy(self) -> Self:
        """Return an independent cache with the same contents, usable inside and outside of inference mode."""
        other = copy(self)
        other._tensors = tuple(t.clone() for t in self._tensors)
        return other

    def reset(self) -> None:
        """Forget all tokens and free the memory."""
        self.num_seen = self.start = 0
        self._tensors, self.is_loaded = (), False

    def state_dict(self) -> dict[str, Tensor]:
        """Return the content as tensors that can be saved, for example with safetensors: copies, on the CPU."""
        counts = torch.tensor([self.num_seen, self.start])
        contents = enumerate(self._contents())
        return {"seen": counts, **{str(i): t.detach().to("cpu", copy=True).contiguous() for i, t in contents}}

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Replace the content by one that `state_dict` returned; that of another layer is refused by its next call.

        Raises:
            ValueError: for tensors that no cache of this kind, capacity and window can hold.
        """
        tensors = tuple(state[str(i)].clone().to(device) for i in range(len(state) - 1) if str(i) in state)
        counts = state.get("seen")
        if counts is None or counts.shape != (2,) or counts.is_floating_point() or len(tensors) != len(state) - 1:
            raise ValueError(f"a cache is saved as seen, 0, 1 ..., not as {', '.join(sorted(state)) or 'nothing'}")
        seen, start = counts.tolist()
        self._check_contents(seen, start, tensors)
        self.num_seen, self.start, self._tensors, self.is_loaded = seen, start, tensors, True

    def _contents(self) -> tuple[Tensor, ...]:
        """The tensors without memory that is allocated ahead."""
        return self._tensors

    def _check_contents(self, seen: int, start: int, tensors: tuple[Tensor, ...]) -> None:
        if seen < 0 or start != 0 or bool(seen) != bool(tensors) or len({t.shape[:1] for t in tensors}) > 1:
            raise ValueError(f"{len(tensors)} tensors are no state after {seen} tokens, of which {start} were dropped")


class KVCache(DecodingCache):
    """The keys and values of one attention layer, preallocated, written in place and read without a copy.

    With a cache, ``layer(x, cache=cache)`` takes only the new tokens and returns what the full pass returns for them:
    a prompt at once, then token by token, in pieces of any length.

    Args:
        capacity: the maximum number of tokens.
        window: keep only the last ``window`` tokens, for masks that reach no further back (``sliding_window(size)``).

    Raises:
        ValueError: for a capacity or a window below one.
    """

    def __init__(self, capacity: int, *, window: int | None = None) -> None:
        super().__init__()
        for name, value in {"capacity": capacity, "window": window}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
        self.capacity, self.window = capacity, window

    @property
    def num_cached(self) -> int:
        """L, the number of cached tokens."""
        return self.num_seen - self.start

    @property
    def bytes_per_token(self) -> int:
        """The memory of one token for all batch items; 0 before the first token."""
        return sum(t.nbytes // t.shape[-2] for t in self._tensors)

    def admit(self, x: Tensor) -> None:
        """Check that new tokens (B, N, D) continue this cache, and allocate memory for them; see `DecodingCache`."""
        N = x.shape[1]
        if self.num_seen + N > self.capacity:
            raise ValueError(
                f"the cache has seen {self.num_seen} of at most {self.capacity} tokens, and {N} more do not fit; "
                f"make it with KVCache(capacity={self.num_seen + N}) or more, or crop() it"
            )
        super().admit(x)
        if self._tensors:
            self._make_room(N)

    def update(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Append the keys and values of new tokens (or other tensors, the same number in every call).

        Args:
            new: (B, H, N, d) each, or (B, N, d).

        Returns:
            The same tensors for all cached tokens, with L in place of N; views, valid until the next call.

        Raises:
            ValueError: where a gradient is required; for tensors of another number, shape, dtype or device than the
                cached ones, or for more tokens than were admitted. The cache is then unchanged.
        """
        _refuse_gradients(new)
        N = new[0].shape[-2]
        if any(t.shape[-2] != N for t in new):
            raise ValueError(f"all tensors must have the same number of tokens, not {[t.shape[-2] for t in new]}")
        if not self._tensors:
            room = min(max(INITIAL_LENGTH, 2 * N), self.capacity)
            self._tensors = tuple(_reallocate(None, t, room) for t in new)
        _check_alike(self._tensors, new, lambda t: (*t.shape[:-2], t.shape[-1]))
        if self.num_cached + N > (room := self._tensors[0].shape[-2]):
            raise ValueError(
                f"there is room for {room - self.num_cached} more tokens, not {N}; call admit() before update()"
            )
        end = self.num_cached + N
        for memory, t in zip(self._tensors, new, strict=True):
            memory[..., end - N : end, :] = t
        self.num_seen += N
        self.is_loaded = False
        return tuple(memory[..., :end, :] for memory in self._tensors)

    def crop(self, length: int) -> None:
        """Keep the first ``length`` tokens and forget the later ones (speculative decoding).

        Raises:
            ValueError: for more tokens than were seen; for a length whose window has been dropped.
        """
        if not 0 <= length <= self.num_seen:
            raise ValueError(f"crop(length) takes 0 to {self.num_seen}, the number of tokens seen, not {length}")
        least = self.start + (self.window or 1) - 1 if self.start else 0
        if length < min(least, self.num_seen):
            raise ValueError(
                f"a cache with window={self.window} cannot be cropped to {length} tokens, because keys that these "
                f"attend to were dropped; the minimum is {min(least, self.num_seen)}"
            )
        self.num_seen = length

    def _contents(self) -> tuple[Tensor, ...]:
        return tuple(t[..., : self.num_cached, :] for t in self._tensors)

    def _check_contents(self, seen: int, start: int, tensors: tuple[Tensor, ...]) -> None:
        if not 0 <= start <= seen <= self.capacity or (start and self.window is None) or bool(seen) != bool(tensors):
            raise ValueError(f"{self!r} cannot hold {len(tensors)} tensors of {seen} tokens from token {start} on")
        if any(t.dim() < 3 or t.shape[-2] != seen - start or len(t) != len(tensors[0]) for t in tensors):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(f"the tensors of {seen - start} tokens must be (batch, ..., tokens, width), not {shapes}")
        if start and seen - start < min(self.window or 1, seen) - 1:
            raise ValueError(f"{self!r} cannot continue from the last {seen - start} of {seen} tokens; it needs more")

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return (
            f"KVCache(capacity={self.capacity}{window}): {self.num_seen} seen, {self.num_cached} kept, "
            f"{self.bytes:,} bytes"
        )

    def _make_room(self, new: int) -> None:
        """Double the memory, or drop the tokens that left the window."""
        room = self._tensors[0].shape[-2]
        too_large = self.window is not None and room > max(INITIAL_LENGTH, 4 * (self.window + new))  # a long prompt
        if self.num_cached + new <= room and not too_large:
            return
        drop = 0 if self.window is None else min(max(0, self.num_cached - (self.window - 1)), self.num_cached)
        need = self.num_cached - drop + new
        if 2 * need > room or too_large:
            room = min(max(INITIAL_LENGTH if too_large else room, 2 * need), self.capacity)
        kept = slice(drop, self.num_cached)
        self._tensors = tuple(_reallocate(memory[..., kept, :], memory, room) for memory in self._tensors)
        self.start += drop


class RecurrentState(DecodingCache):
    """The state of one recurrent layer: tensors of constant size, batch first, however many tokens were seen.

    It has no `KVCache.crop`, because earlier states are not kept: `copy` a state before tokens that may be rejected.
    """

    @property
    def state(self) -> tuple[Tensor, ...]:
        """The tensors after the last token; empty before the first."""
        return self._tensors

    def replace(self, num_tokens: int, *state: Tensor) -> None:
        """Replace the state by the one after ``num_tokens`` further tokens.

        Raises:
            ValueError: where a gradient is required; for tensors of another number, shape, dtype or device than the
                state before.
        """
        _refuse_gradients(state)
        if self._tensors:
            _check_alike(self._tensors, state, lambda t: t.shape)
        self._tensors, self.is_loaded = tuple(map(_compact, state)), False
        self.num_seen += num_tokens

    def __repr__(self) -> str:
        return f"RecurrentState(): {self.num_seen} seen, {self.bytes:,} bytes"


def snapshot(cache: Any) -> dict[str, Any]:
    """The attributes of a cache, for `restore`; new tokens are written behind the cached ones, so they are enough."""
    return dict(vars(cache)) if isinstance(cache, DecodingCache) else {}


def restore(cache: Any, attributes: dict[str, Any]) -> None:
    """Take a cache back to a `snapshot`."""
    if attributes:
        vars(cache).update(attributes)


@contextmanager
def unchanged_on_error(*caches: DecodingCache) -> Iterator[None]:
    """Leave these caches as they were if the block raises."""
    before = [(cache, snapshot(cache)) for cache in caches]
    try:
        yield
    except BaseException:
        for cache, attributes in before:
            restore(cache, attributes)
        raise


def _check_alike(kept: tuple[Tensor, ...], new: tuple[Tensor, ...], shape: Callable[[Tensor], tuple[int, ...]]) -> None:
    """Refuse tensors that cannot continue the cached ones; ``shape`` returns the sizes that must agree."""
    if len(new) != len(kept):
        raise ValueError(f"the cache keeps {len(kept)} tensors per token, not {len(new)}; reset() it to change that")
    for number, (held, t) in enumerate(zip(kept, new, strict=True), 1):
        if held.dtype != t.dtype:
            raise ValueError(
                f"the cache holds {held.dtype} and got {t.dtype} (tensor {number} of {len(new)}); continue in the "
                "precision and under the autocast in which it was filled, or reset() it"
            )
        if held.device != t.device:
            raise ValueError(f"the cache is on {held.device}, the new tensors on {t.device}; reset() it to move")
        if shape(held) != shape(t):
            raise ValueError(
                f"the cache holds tensors of shape {tuple(shape(held))} per token and got {tuple(shape(t))} (tensor "
                f"{number} of {len(new)}); use reorder() for another batch, or reset() it"
            )


def _refuse_gradients(new: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in new):
        raise ValueError("a cache gives no gradients; decode under torch.no_grad() or torch.inference_mode()")


def _compact(t: Tensor) -> Tensor:
    """``t``, or a copy if it is a part of a larger tensor, such as a whole prompt, which it would keep in memory."""
    return t.clone() if not torch.compiler.is_compiling() and t.untyped_storage().nbytes() > t.nbytes else t


@torch.inference_mode(False)
@torch.no_grad()
def _reallocate(kept: Tensor | None, like: Tensor, room: int) -> Tensor:
    """New memory that starts with ``kept``, usable inside and outside of inference mode."""
    new = like.new_empty(*like.shape[:-2], room, like.shape[-1])
    if kept is not None:
        new[..., : kept.shape[-2], :] = kept
    return new
