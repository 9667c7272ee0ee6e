"""The base class of relative positional encodings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnlab.ops.bias import RelativeBias
from attnlab.utils.tracing import can_keep_tensors, widest_dtype


class Positions(nn.Module):
    """No positional encoding, and the base class of the others.

    A subclass overrides `apply_rotary` or `attention_bias`, and `validate`.
    """

    name: str = "none"

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[torch.device, Tensor] = {}

    def reset_parameters(self) -> None:
        """Initialize learned parameters again."""

    def validate(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        """Check that this encoding fits a layer.

        Raises:
            ValueError: if it was made for another number of heads, another width or another causality.
        """

    def apply_rotary(self, x: Tensor, first: int | Tensor = 0) -> Tensor:
        """Return queries or keys (..., N, d) rotated by their positions.

        Args:
            x: queries or keys.
            first: the position of the first one, or integers that broadcast to the leading axes of ``x``.
        """
        return x

    def attention_bias(self, queries: int, keys: int, device: torch.device) -> RelativeBias | None:
        """Return the bias that is added to the scores, the queries aligned with the keys at the end; None for none."""
        return None

    def keep_heads(self, heads: list[int]) -> None:
        """Keep the parameters of these heads, in place."""

    def _constant(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        """Return ``values`` as a tensor on ``device``, in the dtype of `widest_dtype`.

        Constants are not buffers, so that nothing has to be loaded, moved or materialized from the meta device. One
        copy per device is kept, because a copy from the host in every call would synchronize a GPU.
        """
        if not can_keep_tensors():
            return torch.tensor(values, dtype=widest_dtype(device), device=device)
        if device not in self._constants:
            with torch.inference_mode(False):
                self._constants[device] = torch.tensor(values, dtype=widest_dtype(device), device=device)
        return self._constants[device]


def checked_number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Check that ``value`` is a number from ``low`` to ``high``.

    Raises:
        TypeError: if it is not a number, or not an integer where ``whole`` is set.
        ValueError: if it is out of range or NaN.
    """
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, not {value:g}")
