"""A layer that needs memory, or values, when it is built."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
from torch import Tensor, nn

from broken._twins import breaks


@breaks("leaves the meta device")
class HoldsABuffer(Plain):
    """Computes a constant in its constructor and keeps it out of the state_dict."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, device: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, device=device, **options)
        self.register_buffer("gain", torch.full((1,), 2.0, device=device), persistent=False)

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        return super()._forward(x * self.gain.to(x), mask, **given)


@breaks("leaves the meta device")
class ReadsItsWeights(Plain):
    """Reads a value of its parameters in its constructor."""

    def __init__(self, embed_dim: int, num_heads: int = 3, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.gain = float(self.query.weight.abs().max())


@breaks("reset_parameters sets every parameter")
class ForgetsAParameter(Plain):
    """Resets its projections, and not a parameter of its own."""

    def __init__(
        self, embed_dim: int, num_heads: int = 3, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype, **options)
        self.gain = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        return super()._forward(self.gain * x, mask, **given)


@breaks("reset_parameters sets every parameter")
class ResetsToOneValue(Plain):
    """Gives every weight the same value, whatever the seed."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


@breaks("constructors take device= and dtype=")
class IgnoresTheDtype(Plain):
    """Takes a dtype and builds in the default one."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, dtype: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)


@breaks("constructors take device= and dtype=")
class IgnoresTheDevice(Plain):
    """Takes a device and builds on the default one."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, device: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
