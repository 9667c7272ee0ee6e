"""What positions inside of a mechanism can do, and the ones that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.engines.bias import RelativeBias


class Positions(nn.Module):
    """No positions: the base of the others. A scheme of your own overrides `rotate` or `relative`, and `fit`."""

    name: str = "none"

    def fit(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        """Refuse a layer that these positions were not made for.

        Raises:
            ValueError: with what they were made for.
        """

    def rotate(self, x: Tensor, first: int = 0) -> Tensor:
        """Queries or keys (..., N, d) turned by their place; ``first`` is the position of the first."""
        return x

    def relative(self, queries: int, keys: int) -> RelativeBias | None:
        """What is added to the scores, the queries aligned with the keys at the end; None for nothing."""
        return None

    def keep_heads(self, heads: list[int]) -> None:
        """Leave what belongs to these heads, in place."""

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """`relative` written out, (H, N, M)."""
        found = self.relative(queries, keys)
        return None if found is None else found.tensor().squeeze(0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Positions:
        """Move along, but keep angles and slopes exact: rounded to float16, far places would fall together."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            moved = self._buffers[name]
            assert tensor is not None
            assert moved is not None
            self._buffers[name] = tensor.to(moved.device, exact(moved.device))
        return self


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
