"""Biases that depend on the distance: the fixed slopes of ALiBi, and the learned table of T5."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnlab.ops.bias import RelativeBias
from attnlab.positions.base import Positions, checked_number


class ALiBi(Positions):
    """Attention with linear biases: the score decreases linearly with the distance, with one slope per head.

    Source: Press et al. 2021, "Train Short, Test Long", arXiv:2108.12409, section 3; without ``causal``, later
    keys get the same bias as earlier ones.

    Args:
        num_heads: H; the slopes are 2^(-8/H), 2^(-16/H), ..., and as in the code of the paper if H is not a power of
            two.
    """

    name = "alibi"

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = tuple(_slopes(num_heads))

    def validate(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        if num_heads != len(self.slopes):
            raise ValueError(f"these ALiBi slopes are for {len(self.slopes)} heads, not {num_heads}")

    def attention_bias(self, queries: int, keys: int, device: torch.device) -> RelativeBias:
        """``-slope · |i - j|``."""
        far = _distances(queries, keys, device).abs()
        return RelativeBias(-self._constant(self.slopes, device)[:, None] * far, queries, keys)

    def keep_heads(self, heads: list[int]) -> None:
        """Keep the slopes of these heads; a new layer of that many heads would have other slopes."""
        self.slopes = tuple(self.slopes[head] for head in heads)
        self._constants.clear()


class T5Bias(Positions):
    """A learned bias per head and range of distances; ranges are single distances near the query, wider far from it.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1.

    Args:
        num_heads: H.
        causal: whether there are no ranges for later keys.
        num_buckets: the number of ranges; without ``causal``, half of them are for later keys.
        max_distance: the distance from which on all distances share one range.
        device: the device of the table.
        dtype: the dtype of the table.

    Raises:
        TypeError: for a count that is not an integer.
        ValueError: for too few or an odd number of ranges, or a max_distance distance within the exact ones.
    """

    name = "t5"

    def __init__(
        self,
        num_heads: int,
        *,
        causal: bool = False,
        num_buckets: int = 32,
        max_distance: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checked_number("num_buckets", num_buckets, 2 if causal else 4, 65_536, whole=True)
        if num_buckets % 2:
            raise ValueError(f"num_buckets must be even, half of them for near keys, not {num_buckets}")
        checked_number(
            "max_distance", max_distance, (num_buckets if causal else num_buckets // 2) // 2 + 1, 1e9, whole=True
        )
        self.causal, self.num_buckets, self.max_distance = causal, num_buckets, max_distance
        self.table = nn.Embedding(num_buckets, num_heads, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.1)

    def validate(self, *, num_heads: int, head_dim: int, causal: bool) -> None:
        if num_heads != self.table.embedding_dim:
            raise ValueError(f"this T5 bias is for {self.table.embedding_dim} heads, not {num_heads}")
        if self.causal and not causal:
            raise ValueError(
                "this T5 bias has no ranges for later keys; build it with causal=False, or the layer with causal=True"
            )

    def attention_bias(self, queries: int, keys: int, device: torch.device) -> RelativeBias:
        """Return the bias; it is differentiable with respect to the table."""
        learned: Tensor = self.table(self.ranges(_distances(queries, keys, device)))
        return RelativeBias(learned.T, queries, keys)

    def keep_heads(self, heads: list[int]) -> None:
        weight = self.table.weight
        self.table.weight = nn.Parameter(weight.detach()[:, heads], weight.requires_grad)
        self.table.embedding_dim = len(heads)

    def ranges(self, distances: Tensor) -> Tensor:
        """Return the index of the range for each distance (key minus query)."""
        count, start = self.num_buckets, torch.zeros_like(distances)
        if not self.causal:
            count //= 2
            start = (distances > 0) * count
        far = -distances if self.causal else distances.abs()
        far = far.clamp(min=0)
        near = count // 2
        coarse = torch.log(far.clamp(min=1) / near) / math.log(self.max_distance / near) * (count - near)
        return start + torch.where(far < near, far, (near + coarse.long()).clamp(max=count - 1))

    def extra_repr(self) -> str:
        return f"causal={self.causal}, num_buckets={self.num_buckets}, max_distance={self.max_distance}"


def _distances(queries: int, keys: int, device: torch.device) -> Tensor:
    """All distances, key minus query, ascending: (N + M - 1,)."""
    return torch.arange(-keys, queries, device=device)[1:]


def _slopes(heads: int) -> list[float]:
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return _slopes(below) + _slopes(2 * below)[::2][: heads - below]
