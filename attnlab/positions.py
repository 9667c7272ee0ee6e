"""How place matters: queries and keys are turned by their place, or scores are changed by distance.

All of these are relative: what a token hears of another depends on how far apart they are alone, so that padding on
the left, packing and a cache change nothing.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Name = Literal["none", "rotary", "alibi", "t5"]


class Positions(nn.Module):
    """No positions: the base of the others."""

    name: Name = "none"

    def rotate(self, x: Tensor, first: int = 0) -> Tensor:
        """Queries or keys (..., N, d) turned by their place; ``first`` is the position of the first."""
        return x

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """What is added to the scores, (H, N, M), the queries aligned with the keys at the end; None for nothing."""
        return None

    def keep_heads(self, heads: list[int]) -> None:
        """Leave what belongs to these heads, in place."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Positions:
        """Move along, but keep angles and slopes in float64: rounded to float16, far places would fall together."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in exact.items():
            moved = self._buffers[name]
            assert tensor is not None
            assert moved is not None
            self._buffers[name] = tensor.to(moved.device)
        return self


@dataclass(frozen=True)
class Scaling:
    """How rotary positions are stretched to sequences ``factor`` times as long as those that were trained on.

    Args:
        kind: ``linear`` divides every position (Chen et al. 2023, arXiv:2306.15595); ``ntk`` widens the base, so that
            near places stay apart (bloc97 2023); ``yarn`` divides the slow turns, leaves the fast ones, and sharpens
            the scores (Peng et al. 2023, arXiv:2309.00071, section 3).
        factor: at least 1.
        original: the length that was trained on, which yarn needs.

    Raises:
        ValueError: for a kind that does not exist, a factor below 1, yarn without ``original``.
    """

    kind: Literal["linear", "ntk", "yarn"]
    factor: float
    original: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "ntk", "yarn"):
            raise ValueError(f"scaling is linear, ntk or yarn, not {self.kind!r}")
        if not self.factor >= 1:
            raise ValueError(f"a scaling factor is at least 1, not {self.factor}")
        if self.kind == "yarn" and self.original is None:
            raise ValueError("yarn needs original=, the length that was trained on")


class Rotary(Positions):
    """Rotary positions: pairs of numbers are turned by an angle that grows with the place.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, section 3.2.

    Args:
        head_dim: d.
        base: the slowest pair turns once in about 2π · base places.
        share: the part of d that is turned, from the front (partial rotary, as in GPT-NeoX).
        layout: which numbers make a pair: ``half`` (i and i + r/2, as in Llama), ``interleaved`` (2i and 2i + 1, as in
            the paper).
        scaling: for sequences longer than those that were trained on.

    Raises:
        ValueError: for a turned width that is odd or empty, or a layout that does not exist.
    """

    name = "rotary"

    frequencies: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        share: float = 1.0,
        layout: Literal["half", "interleaved"] = "half",
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        width = round(head_dim * share)
        if not 0 < width <= head_dim or width % 2:
            raise ValueError(
                f"rotary positions turn pairs: {share:g} of head_dim ({head_dim}) must be even and at least 2, not "
                f"{width}; choose num_heads so that head_dim is even"
            )
        if layout not in ("half", "interleaved"):
            raise ValueError(f"layout is 'half' or 'interleaved', not {layout!r}")
        self.width, self.layout, self.base = width, layout, base
        self.register_buffer("frequencies", _frequencies(width, base, scaling), persistent=False)
        self.sharpening = 0.1 * math.log(scaling.factor) + 1 if scaling and scaling.kind == "yarn" else 1.0

    def rotate(self, x: Tensor, first: int = 0) -> Tensor:
        """Each pair (a, b) at place m becomes (a cos mθ - b sin mθ, a sin mθ + b cos mθ)."""
        # Angles in float64: in float32 place 100,000 is off by a hundredth of a turn.
        places = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64)
        angles = torch.outer(places, self.frequencies.to(torch.float64))
        cos, sin = ((t * self.sharpening).to(x.dtype) for t in (angles.cos(), angles.sin()))
        turned, rest = x[..., : self.width], x[..., self.width :]
        a, b = turned.chunk(2, -1) if self.layout == "half" else (turned[..., ::2], turned[..., 1::2])
        pair = (a * cos - b * sin, a * sin + b * cos)
        turned = torch.cat(pair, -1) if self.layout == "half" else torch.stack(pair, -1).flatten(-2)
        return torch.cat([turned, rest], -1) if rest.shape[-1] else turned

    def extra_repr(self) -> str:
        """What a printed network shows."""
        return f"width={self.width}, base={self.base:g}, layout={self.layout!r}"


class ALiBi(Positions):
    """Attention with linear biases: a score is lowered in proportion to the distance, in each head by another slope.

    Source: Press et al. 2021, "Train Short, Test Long", arXiv:2108.12409, section 3; without ``causal`` the distance
    is taken on both sides alike.

    Args:
        num_heads: H; slopes are 2^(-8/H), 2^(-16/H), ...; where H is no power of two, the paper's code interleaves.
    """

    name = "alibi"

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(_slopes(num_heads), dtype=torch.float64), persistent=False)

    def bias(self, queries: int, keys: int) -> Tensor:
        """``-slope · |i - j|``."""
        return -self.slopes[:, None, None] * _offsets(queries, keys, self.slopes.device).abs()

    def keep_heads(self, heads: list[int]) -> None:
        """The slopes that these heads have, not those of a layer that was made with as many."""
        self.slopes = self.slopes[heads]


class T5Bias(Positions):
    """A learned number for each head and each of a few ranges of distance, exact when near and coarse when far.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1.

    Args:
        num_heads: H.
        causal: whether the keys ahead need no ranges of their own.
        buckets: how many ranges.
        longest: from this distance on all are one range.
    """

    name = "t5"

    def __init__(self, num_heads: int, *, causal: bool = False, buckets: int = 32, longest: int = 128) -> None:
        super().__init__()
        self.causal, self.buckets, self.longest = causal, buckets, longest
        self.table = nn.Embedding(buckets, num_heads)
        nn.init.normal_(self.table.weight, std=0.1)

    def bias(self, queries: int, keys: int) -> Tensor:
        """The numbers of the ranges, (H, N, M); gradients reach the table."""
        ranges = self.ranges(_offsets(queries, keys, self.table.weight.device))
        learned: Tensor = self.table(ranges)
        return learned.permute(2, 0, 1)

    def keep_heads(self, heads: list[int]) -> None:
        """The columns of these heads."""
        weight = self.table.weight
        self.table.weight = nn.Parameter(weight.detach()[:, heads], weight.requires_grad)
        self.table.embedding_dim = len(heads)

    def ranges(self, offsets: Tensor) -> Tensor:
        """The range of every offset (key minus query)."""
        count, start = self.buckets, torch.zeros_like(offsets)
        if not self.causal:
            count //= 2
            start = (offsets > 0) * count
        far = -offsets if self.causal else offsets.abs()
        far = far.clamp(min=0)
        exact = count // 2
        coarse = torch.log(far.clamp(min=1) / exact) / math.log(self.longest / exact) * (count - exact)
        return start + torch.where(far < exact, far, (exact + coarse.long()).clamp(max=count - 1))


def make(name: Name, *, num_heads: int, head_dim: int, causal: bool) -> Positions:
    """The positions of this name, as their papers set them.

    Raises:
        ValueError: for a name that does not exist, or an odd head_dim for rotary.
    """
    if name == "none":
        return Positions()
    if name == "rotary":
        return Rotary(head_dim)
    if name == "alibi":
        return ALiBi(num_heads)
    if name == "t5":
        return T5Bias(num_heads, causal=causal)
    raise ValueError(f"positions is none, rotary, alibi or t5, not {name!r}")


def _offsets(queries: int, keys: int, device: torch.device) -> Tensor:
    """Key minus query, (N, M)."""
    place = torch.arange(keys, device=device)
    return place - place[keys - queries :, None]


def _slopes(heads: int) -> list[float]:
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return _slopes(below) + _slopes(2 * below)[::2][: heads - below]


def _frequencies(width: int, base: float, scaling: Scaling | None) -> Tensor:
    """θ of every pair, radians a place, (width / 2,)."""
    if scaling and scaling.kind == "ntk" and width > 2:
        base = base * scaling.factor ** (width / (width - 2))
    theta = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if scaling is None or scaling.kind == "ntk":
        return theta
    if scaling.kind == "linear":
        return theta / scaling.factor
    assert scaling.original is not None
    turns = scaling.original * theta / (2 * math.pi)  # within the length that was trained on
    kept = ((turns - 1) / (32 - 1)).clamp(0, 1)  # α = 1 and β = 32, as the paper sets them for Llama
    return theta * kept + theta / scaling.factor * (1 - kept)
