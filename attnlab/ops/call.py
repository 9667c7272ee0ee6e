"""One call of softmax attention, and the interface of the backends that compute it.

Axes: B batch, H heads, G query heads per key head, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.ops.bias import Bias
from attnlab.ops.dispatch import Dispatch


@dataclass(frozen=True)
class AttentionCall:
    """``dropout(softmax([sink | cap(scale · q kᵀ) + bias])) [0 | v]`` over the keys that the mask allows.

    Args:
        q: (B, H, N, d); the queries are aligned with the keys at the end.
        k: (B, H / G, M, d); G query heads that follow each other share a key head.
        v: (B, H / G, M, w).
        mask: the keys that each query attends to.
        bias: added to the scores; four axes, broadcastable to (B, H, N, M).
        scale: the factor of the scores; 1/√d if None.
        sink: (H,), a logit in every row that takes weight and has no value.
        softcap: the scores become ``softcap · tanh(score / softcap)`` before the bias.
        dropout: the probability of dropping a weight; 0 outside of training.
        can_inspect: whether the choice of a backend may depend on the values of the mask: eagerly on a CPU.
        can_split: whether it may depend on the sizes: eagerly on any device.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: BoundMask | None = None
    bias: Bias | None = None
    scale: float | None = None
    sink: Tensor | None = None
    softcap: float | None = None
    dropout: float = 0.0
    can_inspect: bool = False
    can_split: bool = False

    def expand(self) -> AttentionCall:
        """Return the same call for kernels that need equal widths and one key head per query head.

        Padding features of zeros change no score. Repeating the keys costs what one more query per head would. The mask
        is dropped where it allows every key.
        """
        q, k, v, mask = self.q, self.k, self.v, self.mask
        if mask is not None and not torch.compiler.is_compiling() and mask.allows_all:
            mask = None
        groups, more = num_groups(q, k), v.shape[-1] - q.shape[-1]
        if more > 0:
            q, k = F.pad(q, (0, more)), F.pad(k, (0, more))
        elif more < 0:
            v = F.pad(v, (0, -more))
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        return replace(self, q=q, k=k, v=v, mask=mask, scale=self.score_scale)

    @property
    def score_scale(self) -> float:
        """The factor of the scores."""
        return 1 / math.sqrt(self.q.shape[-1]) if self.scale is None else self.scale


class Backend(Protocol):
    """A way to compute some calls."""

    def applies(self, call: AttentionCall) -> Any:
        """Return what `run` needs, or None if the backend does not apply or would not be faster than later ones."""

    def run(self, call: AttentionCall, plan: Any) -> Tensor:
        """Return the output, (B, H, N, w); zeros in a fully masked row."""

    def explain(self, call: AttentionCall, plan: Any) -> Dispatch | None:
        """Return the name of the backend and the reason for the choice; None if `run` records its own."""


def num_groups(q: Tensor, k: Tensor) -> int:
    """G, the number of query heads that share a key head.

    Raises:
        ValueError: if the number of key heads does not divide the number of query heads.
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"the number of key heads ({k.shape[1]}) must divide the number of query heads ({q.shape[1]})")
    return q.shape[1] // k.shape[1]


def repeat_kv(keys: Tensor, groups: int) -> Tensor:
    """(B, H / G, M, d) as (B, H, M, d)."""
    return keys if groups == 1 else keys.repeat_interleave(groups, 1)
