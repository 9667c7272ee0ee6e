"""What positions inside of a mechanism can do, and the ones that do nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attnlab.ops.bias import RelativeBias
from attnlab.utils.tracing import can_keep_tensors


class Positions(nn.Module):
    """No positional encoding, and the base class of the others.

    A subclass overrides `apply_rotary` or `attention_bias`, and `validate`.
    """

    name: str = "none"

    def __init__(self) -> None:
        super().__init__()
        self._constants: dict[torch.device, Tensor] = {}

    def reset_parameters(self) -> None:
        """Draw what is learned anew."""

    def validate(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        """Refuse a layer that these positions were not made for.

        Raises:
            ValueError: with what they were made for.
        """

    def apply_rotary(self, x: Tensor, first: int = 0) -> Tensor:
        """Queries or keys (..., N, d) turned by their place; ``first`` is the position of the first."""
        return x

    def attention_bias(self, queries: int, keys: int, device: torch.device) -> RelativeBias | None:
        """What is added to the scores, the queries aligned with the keys at the end; None for nothing."""
        return None

    def keep_heads(self, heads: list[int]) -> None:
        """Leave what belongs to these heads, in place."""

    def _constant(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        """``values`` as a tensor on ``device``, in the type of `exact`.

        What follows from the options alone is no buffer: nothing has to be loaded, moved or materialized from the meta
        device. One copy per device is kept, because copying from the host would make a GPU wait on every call.
        """
        if not can_keep_tensors():
            return torch.tensor(values, dtype=exact(device), device=device)
        if device not in self._constants:
            with torch.inference_mode(False):
                self._constants[device] = torch.tensor(values, dtype=exact(device), device=device)
        return self._constants[device]


def exact(device: torch.device) -> torch.dtype:
    """The type to compute angles and slopes in: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def checked_number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Refuse what is no number from ``low`` to ``high``.

    Raises:
        TypeError: for what is no number, or no whole one where one is needed.
        ValueError: for one outside of the range, NaN among them.
    """
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"{name} is {kind}, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {kind} from {low:g} to {high:g}, not {value:g}")
