"""The decay of selective state spaces, which the gated delta rule took over."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.nn.select import select_channels
from attnlab.ops.rowwise import at_least_float32


class SelectiveDecay(nn.Module):
    """``log α_t = -exp(A) Δ_t`` with the step size ``Δ_t = softplus(y_t + dt)``, in float32 or float64.

    Source: Gu & Dao 2023, "Mamba", section 3.6; Dao & Gu 2024, "Transformers are SSMs", section 7.

    Args:
        num_heads: H, the number of rates A.
        width: the number of step sizes per head.
        smallest_rate: exp(A) is drawn uniformly from (``smallest_rate``, 16).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    def __init__(
        self,
        num_heads: int,
        width: int = 1,
        *,
        smallest_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.smallest_rate = width, smallest_rate
        self.log_rate = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))  # A
        self.offset = nn.Parameter(torch.empty(num_heads * width, device=device, dtype=dtype))  # dt
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw exp(A) uniformly, and softplus(dt) log-uniformly from (0.001, 0.1), as the papers do."""
        self.log_rate.uniform_(self.smallest_rate, 16).clamp_(min=1e-4).log_()
        step = torch.empty_like(self.offset).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.offset.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log decay and the step sizes, (..., H * width) each, for ``y`` of that shape."""
        step = -F.logsigmoid(-at_least_float32(y) - self.offset)  # softplus, which ONNX has not in float64
        rate = at_least_float32(self.log_rate).exp()
        return -rate.repeat_interleave(self.width) * step, step

    def select(self, heads: list[int]) -> None:
        """Keep these heads, in place."""
        channels = [head * self.width + i for head in heads for i in range(self.width)]
        self.log_rate = select_channels(self.log_rate, heads)
        self.offset = select_channels(self.offset, channels)
