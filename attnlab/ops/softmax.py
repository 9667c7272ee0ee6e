"""Softmax attention: fused, and as a lazy matrix of attention weights.

Axes: B batch, H heads, G query heads per key head, N queries, M keys, d head_dim, w width of the values. A mechanism
with one head may leave out H.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.ops.arithmetic import Arithmetic, Cell, dot_product, softmax
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.backends.eager import masked_softmax as masked_softmax
from attnlab.ops.backends.flex import Flex
from attnlab.ops.backends.sdpa import Fused, Kernel, Sdpa, additive, unpad
from attnlab.ops.backends.segments import Segments
from attnlab.ops.backends.tiles import CausalChunks, Rows, Tiled
from attnlab.ops.bias import Bias, cut, four_axes, of_heads
from attnlab.ops.call import AttentionCall, Backend, num_groups, repeat_kv
from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.rowwise import RowwiseMap, scaled_dot_product
from attnlab.utils.tracing import can_inspect_values, has_values

MAX_SHARED_QUERIES = 16
"""Queries up to which the heads that share keys are computed as one head with more queries, without repeating keys."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None = None,
    bias: Bias | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(scale · q kᵀ + bias) v`` over the allowed keys, with PyTorch's fused kernels.

    Args:
        q: (B, H, N, d), or (B, N, d) for one head.
        k: (B, H, M, d), or with H / G heads, each for G query heads that follow each other.
        v: (B, H, M, w), with as many heads as ``k``.
        mask: the keys that each query attends to.
        bias: added to the scores, broadcastable to (B, H, N, M).
        scale: the factor of the scores; 1/√d by default.
        dropout: the probability of dropping a weight; 0 outside of training.
        sink: (H,), a logit in every row that takes weight and has no value (gpt-oss 2025).
        softcap: the scores become ``softcap · tanh(score / softcap)`` before the bias (Gemma 2, 2024, section 2).

    Returns:
        (B, H, N, w); zeros in a fully masked row.

    Raises:
        ValueError: if the number of key heads does not divide the number of query heads.

    Source: Vaswani et al. 2017, section 3.2.1; Dao et al. 2022 for the kernel that never materializes the weights;
    Shazeer 2019 and Ainslie et al. 2023 for heads that share keys.
    """
    weights = SoftmaxMap(q, k, mask, bias, scale=scale, sink=sink, softcap=softcap)
    if q.dim() == 3:
        return weights.apply(v.unsqueeze(1), dropout=dropout).squeeze(1)
    return weights.apply(v, dropout=dropout)


def softmax_weights(
    q: Tensor, k: Tensor, mask: BoundMask | None = None, bias: Bias | None = None, *, scale: float | None = None
) -> Tensor:
    """``softmax(scale · q kᵀ + bias)``, materialized: (B, H, N, M), zero for masked keys and in a fully masked row.

    Takes what `softmax_attention` takes.
    """
    return SoftmaxMap(q, k, mask, bias, scale=scale).materialize()


class SoftmaxMap(AttentionMap):
    """The attention weights of `softmax_attention`, lazily; takes what it takes, without the values."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        mask: BoundMask | None = None,
        bias: Bias | None = None,
        *,
        scale: float | None = None,
        sink: Tensor | None = None,
        softcap: float | None = None,
    ) -> None:
        if q.dim() == 3:  # the fused kernels need a head axis
            q, k = q.unsqueeze(1), k.unsqueeze(1)
        self.shape, self._like = (*q.shape[:3], k.shape[2]), q
        self.q, self.k, self.mask = q, k, mask
        self.scale, self.sink, self.softcap = scale, sink, softcap
        self.bias = None if bias is None else four_axes(bias)

    @property
    def changes(self) -> frozenset[str]:
        """All options."""
        return frozenset({"temperature", "scale", "softcap", "sink"})

    def _with_scores(self, options: ScoreOptions) -> SoftmaxMap:
        scale = 1 / math.sqrt(self.q.shape[-1]) if self.scale is None else self.scale
        scale = (scale if options.scale else 1.0) / options.temperature
        softcap = self.softcap if options.softcap is None else options.softcap
        sink = self.sink if options.sink is None else self.q.new_full((self.shape[1],), options.sink)
        return SoftmaxMap(self.q, self.k, self.mask, self.bias, scale=scale, sink=sink, softcap=softcap)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, by the first backend that applies: (B, H, M, w) to (B, H, N, w).

        Args:
            values: (B, H, M, w), or with 1 in place of B or H, or with as many heads as the keys.
            dropout: the probability of dropping a weight; 0 outside of training.

        Raises:
            ValueError: for values of another batch size, number of heads or length.
        """
        q, k, shape = self.q, self.k, values.shape
        (B, H), (heads, M) = q.shape[:2], k.shape[1:3]
        if len(shape) != 4 or shape[0] not in (1, B) or shape[1] not in (1, heads, H) or shape[2] != M:
            raise ValueError(
                f"values must have shape (batch, heads, keys, width) = ({B}, {H}, {M}, width), with 1 in place of the "
                f"batch or the heads, or {heads} heads as the keys have, not {tuple(shape)}"
            )
        if shape[1] not in (1, heads):
            k = repeat_kv(k, num_groups(q, k))
        if shape[0] != B or shape[1] != k.shape[1]:
            values = values.expand(B, k.shape[1], -1, -1)
        inspect = can_inspect_values(q)
        split = inspect or has_values(q)
        call = AttentionCall(
            q, k, values, self.mask, self.bias, self.scale, self.sink, self.softcap, dropout, inspect, split
        )
        for backend in BACKENDS:
            plan = backend.applies(call)
            if plan is not None:
                if not torch.compiler.is_compiling():
                    record(partial(_explain, backend, call, plan))
                return backend.run(call, plan)
        raise AssertionError("Sdpa applies to every call")

    def _rows(self, rows: Tensor) -> Tensor:
        return self.by_rows()._rows(rows)

    def by_rows(self) -> RowwiseMap:
        """Return the same weights, materialized a few rows at a time."""
        k, sink, scale = repeat_kv(self.k, num_groups(self.q, self.k)), self.sink, self.scale

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return scaled_dot_product(q, k) if scale is None else q @ k.mT * scale

        def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
            return masked_softmax(scores, permitted, sink)

        return RowwiseMap(
            self.q,
            k,
            self.mask,
            self.bias,
            normalize,
            score_fn=scores,
            softcap=self.softcap,
            score_lines=partial(dot_product, scale=scale),
            weight_lines=partial(softmax, sink=sink),
        )

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        self.by_rows()._explain(a, cell)


class Softcapped:
    """A cap on the scores, which no fused kernel has."""

    def applies(self, call: AttentionCall) -> bool | None:
        return None if call.softcap is None else True

    def run(self, call: AttentionCall, plan: bool) -> Tensor:
        weights = SoftmaxMap(
            call.q, call.k, call.mask, call.bias, scale=call.scale, sink=call.sink, softcap=call.softcap
        )
        return weights.by_rows().apply(repeat_kv(call.v, num_groups(call.q, call.v)), dropout=call.dropout)

    def explain(self, call: AttentionCall, plan: bool) -> None:
        return None  # `RowwiseMap` records it


class PerHead:
    """A mask with a rule per head: each group of heads is dispatched by itself."""

    def applies(self, call: AttentionCall) -> list[tuple[slice, BoundMask]] | None:
        """Return the groups of heads with their masks."""
        if call.mask is None or call.mask.mask.num_heads == 1 or not call.can_inspect:
            return None
        return call.mask.head_groups()

    def run(self, call: AttentionCall, plan: list[tuple[slice, BoundMask]]) -> Tensor:
        groups, outs = num_groups(call.q, call.k), []
        k, v = repeat_kv(call.k, groups), repeat_kv(call.v, groups)
        for heads, mask in plan:
            bias = None if call.bias is None else of_heads(call.bias, heads)
            sink = None if call.sink is None else call.sink[heads]
            weights = SoftmaxMap(
                call.q[:, heads], k[:, heads], mask, bias, scale=call.scale, sink=sink, softcap=call.softcap
            )
            outs.append(weights.apply(v[:, heads], dropout=call.dropout))
        return torch.cat([out.transpose(1, 2) for out in outs], 2).transpose(1, 2)  # in the layout of the kernels

    def explain(self, call: AttentionCall, plan: Any) -> None:
        return None  # each group records its own


class SharedKeys:
    """A few queries of G heads that share keys, computed as G times as many queries of one head: no key is copied."""

    def applies(self, call: AttentionCall) -> slice | None:
        """Return the range of keys that the queries may attend to."""
        N = call.q.shape[2]
        if not call.can_inspect or call.dropout or call.sink is not None:
            return None  # a traced length is not compared: it stays free
        if call.q.shape[1] == call.k.shape[1] or N > MAX_SHARED_QUERIES:
            return None
        return slice(0, call.k.shape[2]) if call.mask is None else call.mask.key_range(slice(0, N))

    def run(self, call: AttentionCall, plan: slice) -> Tensor:
        (H, N), heads, groups = call.q.shape[1:3], call.k.shape[1], num_groups(call.q, call.k)
        mask = None if call.mask is None or call.mask.allows_all else call.mask
        rows, keys, width = slice(0, N), plan, call.v.shape[-1]

        def folded(matrix: Tensor) -> Tensor:
            matrix = matrix.expand(matrix.shape[0], H, N, keys.stop - keys.start)
            return matrix.unflatten(1, (heads, groups)).flatten(2, 3)

        permitted = None if mask is None else folded(mask.tile(rows, keys))
        bias = None if call.bias is None else folded(cut(call.bias, rows, keys))
        q = call.q.unflatten(1, (heads, groups)).flatten(2, 3)
        part = replace(call, q=q, k=call.k[:, :, keys], v=call.v[:, :, keys], mask=None).expand()
        out = Kernel(part.score_scale)(part.q, part.k, part.v, additive(permitted, bias, q.dtype))
        return unpad(out, width).unflatten(2, (groups, N)).flatten(1, 2)

    def explain(self, call: AttentionCall, plan: slice) -> Dispatch:
        (H, N), heads = call.q.shape[1:3], call.k.shape[1]
        return Dispatch(
            "shared", f"{H} heads of {N} queries use {heads} heads of {plan.stop - plan.start} keys without copies"
        )


BACKENDS: tuple[Backend, ...] = (
    Fused(),
    PerHead(),
    Softcapped(),
    SharedKeys(),
    Tiled(),
    Segments(),
    CausalChunks(),
    Flex(),
    Rows(),
    Sdpa(),
)
"""In order of preference; the thresholds were measured by ``python -m benchmarks cores``."""


def _explain(backend: Backend, call: AttentionCall, plan: Any) -> Dispatch | None:
    dispatch = backend.explain(call, plan)
    if dispatch is None or not call.dropout:
        return dispatch
    return replace(dispatch, why=f"{dispatch.why}; dropout {call.dropout:g} of the weights")
