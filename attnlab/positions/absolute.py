"""Absolute positional encodings: a vector is added to each token before the first layer.

Axes: B batch, N new tokens, L positions in the table, D embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlab.utils.errors import nearest
from attnlab.utils.tracing import can_inspect_values, widest_dtype

ABSOLUTE = ("learned", "sinusoidal", "none")


class AbsoluteEmbedding(nn.Module):
    """No absolute encoding, and the base class of the others.

    Args:
        embed_dim: D.
    """

    name: str = "none"

    limit: int | None = None
    """The number of positions; None if it is unlimited."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, x: Tensor, *, first: int = 0, starts: Tensor | None = None) -> Tensor:
        """Add the encoding to the tokens.

        Args:
            x: the new tokens, (B, N, D).
            first: the position of the first of them, the number of tokens in a cache.
            starts: (B,) integers, for padding on the left: the position of the first real token of each item, which
                counts as position 0. The padding before it counts as position 0 too.

        Returns:
            (B, N, D).

        Raises:
            ValueError: for another shape, a negative position, or a position beyond the learned ones.
            TypeError: for starts that are not integers.
        """
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"x must have shape (batch, length, {self.embed_dim}), not {tuple(x.shape)}")
        if first < 0:
            raise ValueError(f"first must be at least 0, not {first}")
        if starts is not None:
            self._check_starts(x, starts)
        return self._add(x, first, starts)

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        return x

    @staticmethod
    def _check_starts(x: Tensor, starts: Tensor) -> None:
        if starts.is_floating_point() or starts.is_complex() or starts.dtype == torch.bool:
            raise TypeError(f"starts must be integers, not {starts.dtype}")
        if starts.shape != x.shape[:1]:
            raise ValueError(f"starts must have shape (batch,) = ({x.shape[0]},), not {tuple(starts.shape)}")
        if starts.device != x.device:
            raise ValueError(f"starts is on {starts.device}, x on {x.device}; move it with starts.to(...)")
        if can_inspect_values(starts) and bool((starts < 0).any()):
            raise ValueError(f"starts must be at least 0, not {int(starts.min())}")


class Sinusoidal(AbsoluteEmbedding):
    """Sines and cosines of D/2 wavelengths; the number of positions is unlimited.

    ``x[m, 2i] += sin(m · 10000^(-2i/D))`` and ``x[m, 2i + 1] += cos(m · 10000^(-2i/D))``; if D is odd, the
    longest wave has no cosine.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.

    Args:
        embed_dim: D.
    """

    name = "sinusoidal"

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        # In float32, the angle at position 100,000 would be off by a hundredth of a turn.
        dtype = widest_dtype(x.device)
        positions = _positions(x, first, starts).to(dtype)
        channels = torch.arange(0, self.embed_dim, 2, device=x.device, dtype=dtype)
        angles = positions[..., None] * 10_000.0 ** (-channels / self.embed_dim)
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., : self.embed_dim]
        return x + waves.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}"


class Learned(AbsoluteEmbedding):
    """A table with one learned vector per position.

    Source: Gehring et al. 2017, arXiv:1705.03122, section 3.1; Vaswani et al. 2017, section 3.5, found it as good as
    sinusoids.

    Args:
        length: L, the number of positions.
        embed_dim: D.

    Raises:
        ValueError: for a length below 1.
    """

    name = "learned"

    def __init__(self, length: int, embed_dim: int) -> None:
        super().__init__(embed_dim)
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        self.limit = length
        self.table = nn.Parameter(torch.randn(length, embed_dim))

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        end, limit = first + x.shape[1], len(self.table)
        if starts is None:
            self._check_end(end)
            return x + self.table[first:end]
        positions = _positions(x, first, starts)
        if end > limit and positions.numel():  # left padding may exceed the table
            self._check_end(int(positions.max()) + 1)
        return x + self.table[positions]

    def _check_end(self, end: int) -> None:
        if end > len(self.table):
            raise ValueError(
                f"the sequence has {end} tokens, but there are only {len(self.table)} learned positions; truncate it, "
                "or use sinusoidal or no absolute positions, which are unlimited"
            )

    def extra_repr(self) -> str:
        return f"{len(self.table)}, {self.embed_dim}"


def make_absolute(name: str, *, length: int, embed_dim: int) -> AbsoluteEmbedding:
    """Return the absolute encoding of this name: learned (up to ``length``), sinusoidal or none.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "learned":
        return Learned(length, embed_dim)
    if name == "sinusoidal":
        return Sinusoidal(embed_dim)
    if name == "none":
        return AbsoluteEmbedding(embed_dim)
    near = nearest(str(name), ABSOLUTE)
    raise ValueError(
        f"absolute positions must be learned, sinusoidal or none, not {name!r}" + (near and f"; did you mean {near}?")
    )


def _positions(x: Tensor, first: int, starts: Tensor | None) -> Tensor:
    """The position of each token, (N,) or (B, N)."""
    positions = torch.arange(first, first + x.shape[1], device=x.device)
    return positions if starts is None else (positions - starts[:, None]).clamp(min=0)
