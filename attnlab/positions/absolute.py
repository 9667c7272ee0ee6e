"""Where a token stands, as a vector that is added to it before the first layer.

Axes: B batch, N new tokens, L places in the table, D embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnlab.positions.base import exact
from attnlab.utils.errors import nearest

ABSOLUTE = ("learned", "sinusoidal", "none")


class AbsoluteEmbedding(nn.Module):
    """Nothing is added: the base of the others.

    Args:
        embed_dim: D.
    """

    name: str = "none"

    limit: int | None = None
    """The places that there are; None where there is no end."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def forward(self, x: Tensor, *, first: int = 0, starts: Tensor | None = None) -> Tensor:
        """Tell each token its place.

        Args:
            x: the new tokens, (B, N, D).
            first: the position of the first of them: what a cache has seen already.
            starts: (B,) whole numbers, where padding stands on the left: the position of each item's first real token,
                which is place 0. The padding before it is given place 0 too.

        Returns:
            (B, N, D).

        Raises:
            ValueError: another shape, a position below 0, or a place beyond the last that was learned.
            TypeError: starts that are no whole numbers.
        """
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"positions are added to x of shape (batch, length, {self.embed_dim}), not {tuple(x.shape)}"
            )
        if first < 0:
            raise ValueError(f"first is a position, 0 or more, not {first}")
        if starts is not None:
            self._check_starts(x, starts)
        return self._add(x, first, starts)

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        return x

    @staticmethod
    def _check_starts(x: Tensor, starts: Tensor) -> None:
        if starts.is_floating_point() or starts.is_complex() or starts.dtype == torch.bool:
            raise TypeError(f"starts are positions, whole numbers, not {starts.dtype}")
        if starts.shape != x.shape[:1]:
            raise ValueError(f"starts must have shape ({x.shape[0]},), one an item, not {tuple(starts.shape)}")
        if starts.device != x.device:
            raise ValueError(f"starts lie on {starts.device}, the tokens on {x.device}; move them with starts.to(...)")
        if starts.is_cpu and not torch.compiler.is_compiling() and bool((starts < 0).any()):  # looking costs nothing
            raise ValueError(f"starts are positions, 0 or more, not {int(starts.min())}")


class Sinusoidal(AbsoluteEmbedding):
    """Waves of D/2 lengths, a sine and a cosine of each; there is no last place.

    ``x[m, 2i] += sin(m · 10000^(-2i/D))`` and ``x[m, 2i + 1] += cos(m · 10000^(-2i/D))``; where D is odd, the slowest
    wave has no cosine.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.

    Args:
        embed_dim: D.
    """

    name = "sinusoidal"

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        # Angles in float64: in float32 place 100,000 is off by a hundredth of a turn.
        dtype = exact(x.device)
        places = _places(x, first, starts).to(dtype)
        channels = torch.arange(0, self.embed_dim, 2, device=x.device, dtype=dtype)
        angles = places[..., None] * 10_000.0 ** (-channels / self.embed_dim)
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., : self.embed_dim]
        return x + waves.to(x.dtype)

    def extra_repr(self) -> str:
        """What a printed network shows."""
        return f"{self.embed_dim}"


class Learned(AbsoluteEmbedding):
    """A table of one learned vector a place.

    Source: Gehring et al. 2017, arXiv:1705.03122, section 3.1; Vaswani et al. 2017, section 3.5, found it no better
    and no worse than waves.

    Args:
        length: L, the places in the table.
        embed_dim: D.

    Raises:
        ValueError: for a table without a place.
    """

    name = "learned"

    def __init__(self, length: int, embed_dim: int) -> None:
        super().__init__(embed_dim)
        if length < 1:
            raise ValueError(f"a table of positions has at least one place, not {length}")
        self.limit = length
        self.table = nn.Parameter(torch.randn(length, embed_dim))

    def _add(self, x: Tensor, first: int, starts: Tensor | None) -> Tensor:
        end, limit = first + x.shape[1], len(self.table)
        if starts is None:
            self._check_end(end)
            return x + self.table[first:end]
        places = _places(x, first, starts)
        if end > limit and places.numel():  # padding on the left may stand where no place is
            self._check_end(int(places.max()) + 1)
        return x + self.table[places]

    def _check_end(self, end: int) -> None:
        if end > len(self.table):
            raise ValueError(
                f"the sequence has {end} tokens, but there are learned positions for {len(self.table)} alone; cut it, "
                "or build with sinusoidal or no absolute positions, which have no end"
            )

    def extra_repr(self) -> str:
        """What a printed network shows."""
        return f"{len(self.table)}, {self.embed_dim}"


def make_absolute(name: str, *, length: int, embed_dim: int) -> AbsoluteEmbedding:
    """The absolute positions of this name: learned (up to ``length``), sinusoidal or none.

    Raises:
        ValueError: for a name that does not exist.
    """
    if name == "learned":
        return Learned(length, embed_dim)
    if name == "sinusoidal":
        return Sinusoidal(embed_dim)
    if name == "none":
        return AbsoluteEmbedding(embed_dim)
    near = nearest(str(name), ABSOLUTE)
    raise ValueError(
        f"absolute positions are learned, sinusoidal or none, not {name!r}" + (near and f"; did you mean {near}?")
    )


def _places(x: Tensor, first: int, starts: Tensor | None) -> Tensor:
    """The place of every token, (N,) or (B, N)."""
    places = torch.arange(first, first + x.shape[1], device=x.device)
    return places if starts is None else (places - starts[:, None]).clamp(min=0)
