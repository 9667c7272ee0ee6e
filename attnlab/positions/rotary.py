"""Rotary positions: queries and keys are rotated by their positions, so that scores depend on the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnlab.positions.base import Positions, checked_number
from attnlab.utils.tracing import widest_dtype

FAST, SLOW = 32, 1
"""Full rotations within the trained length: above FAST, yarn keeps a frequency; below SLOW, it divides it fully."""


@dataclass(frozen=True)
class Scaling:
    """How rotary positions are scaled to sequences ``factor`` times as long as those in training.

    Args:
        kind: ``linear`` divides every position (Chen et al. 2023, arXiv:2306.15595); ``ntk`` increases the base, which
            keeps high frequencies (bloc97 2023); ``yarn`` divides low frequencies, keeps high ones, and multiplies
            the scores by a temperature (Peng et al. 2023, arXiv:2309.00071, section 3; interpolated by the index of the
            pair, as in the code of the authors).
        factor: at least 1.
        original_max_length: the length of sequences in training, for yarn.

    Raises:
        TypeError: for a factor or a length that is not a number.
        ValueError: for an unknown kind, a factor below 1, yarn without ``original_max_length`` or another kind with it.
    """

    kind: Literal["linear", "ntk", "yarn"]
    factor: float
    original_max_length: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "ntk", "yarn"):
            raise ValueError(f"scaling must be linear, ntk or yarn, not {self.kind!r}")
        checked_number("the scaling's factor", self.factor, 1, 1e9)
        if self.kind == "yarn" and self.original_max_length is None:
            raise ValueError("yarn needs original_max_length=, the length in training")
        if self.kind != "yarn" and self.original_max_length is not None:
            raise ValueError(
                f"original_max_length= is for yarn; {self.kind} scaling does not need the length that was trained on"
            )
        if self.original_max_length is not None:
            checked_number("original_max_length", self.original_max_length, 1, 1e12, whole=True)


class Rotary(Positions):
    """Rotary positions: pairs of features are rotated by an angle proportional to the position.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, section 3.2.

    Args:
        head_dim: d.
        base: the longest wavelength is about 2π · base positions.
        rotary_fraction: the fraction of d that is rotated, from the first feature on (partial rotary, as in
            GPT-NeoX), rounded.
        layout: which features form a pair: ``half`` (i and i + r/2, as in Llama), ``interleaved`` (2i and 2i + 1, as in
            the paper).
        scaling: for sequences longer than those in training.

    Raises:
        TypeError: for a base or a rotary_fraction that is not a number.
        ValueError: for an odd number of rotated features or none, a base of at most 1, or an unknown layout.
    """

    name = "rotary"

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10_000.0,
        rotary_fraction: float = 1.0,
        layout: Literal["half", "interleaved"] = "half",
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        checked_number("base", base, 1.001, 1e30)
        checked_number("rotary_fraction", rotary_fraction, 0, 1)
        width = round(head_dim * rotary_fraction)
        if width < 2 or width % 2:
            what = "an even head_dim" if rotary_fraction == 1 else "an even number of rotated features, at least 2"
            raise ValueError(f"rotary positions need {what}, not {width}; choose num_heads so that it is even")
        if layout not in ("half", "interleaved"):
            raise ValueError(f"layout must be half or interleaved, not {layout!r}")
        self.head_dim, self.width, self.layout, self.base, self.scaling = head_dim, width, layout, base, scaling
        self.frequencies = _frequencies(width, base, scaling)
        """θ of every pair, in radians per position."""
        self.attention_factor = 0.1 * math.log(scaling.factor) + 1 if scaling and scaling.kind == "yarn" else 1.0

    def validate(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        if head_dim != self.head_dim:
            raise ValueError(f"these rotary positions are for heads of width {self.head_dim}, not {head_dim}")

    def apply_rotary(self, x: Tensor, first: int | Tensor = 0) -> Tensor:
        """Each pair (a, b) at position m becomes (a cos mθ - b sin mθ, a sin mθ + b cos mθ)."""
        # In float32, the angle at position 100,000 would be off by a hundredth of a turn.
        positions = torch.arange(x.shape[-2], device=x.device, dtype=widest_dtype(x.device))
        positions = positions + (first.unsqueeze(-1) if isinstance(first, Tensor) else first)
        angles = positions.unsqueeze(-1) * self._constant(self.frequencies, x.device)
        cos, sin = ((t * self.attention_factor).to(x.dtype) for t in (angles.cos(), angles.sin()))
        rotated, rest = x[..., : self.width], x[..., self.width :]
        a, b = rotated.chunk(2, -1) if self.layout == "half" else (rotated[..., ::2], rotated[..., 1::2])
        pair = (a * cos - b * sin, a * sin + b * cos)
        rotated = torch.cat(pair, -1) if self.layout == "half" else torch.stack(pair, -1).flatten(-2)
        return torch.cat([rotated, rest], -1) if rest.shape[-1] else rotated

    def extra_repr(self) -> str:
        scaling = "" if self.scaling is None else f", scaling={self.scaling}"
        return f"width={self.width} of {self.head_dim}, base={self.base:g}, layout={self.layout!r}{scaling}"


def _frequencies(width: int, base: float, scaling: Scaling | None) -> tuple[float, ...]:
    """θ of every pair, in radians per position, width / 2 of them."""
    if scaling and scaling.kind == "ntk" and width > 2:
        base = base * scaling.factor ** (width / (width - 2))
    theta = [base ** (-i / width) for i in range(0, width, 2)]
    if scaling is None or scaling.kind == "ntk":
        return tuple(theta)
    if scaling.kind == "linear":
        return tuple(t / scaling.factor for t in theta)
    assert scaling.original_max_length is not None
    # The index of the pair that makes so many rotations within the trained length.
    fast, slow = (
        width * math.log(scaling.original_max_length / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (FAST, SLOW)
    )
    first, last = max(math.floor(fast), 0), min(math.ceil(slow), width - 1)
    ramp = max(last - first, 1e-3)
    divided = [min(max((i - first) / ramp, 0.0), 1.0) for i in range(width // 2)]
    return tuple(t * (1 - d) + t / scaling.factor * d for t, d in zip(theta, divided, strict=True))
