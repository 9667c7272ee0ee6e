"""FlexAttention on a GPU: the mask is compiled into the kernel, and fully masked blocks are left out.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attnlab.masks import BoundMask
from attnlab.masks.rule import Rule
from attnlab.ops.backends.sdpa import Sdpa, unpad
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MIN_FLEX_LENGTH = 2048
"""Queries and keys from which FlexAttention is faster than SDPA with a matrix.

Measured on an H200 in bfloat16, 16 heads of 64, windows, padding and documents: SDPA takes 0.9 of its time at 1,024
tokens (in training 0.6), and 1.3 to 3.9 times at 2,048 and 4,096 (training 1.1 to 2.1), even if few blocks are masked.
"""

BLOCK = 128
"""Queries and keys per block, as in `torch.nn.attention.flex_attention`."""

MAX_KEPT_MASKS = 16
"""Block masks that are kept for later calls."""

MAX_KERNELS = 64
"""Compilations for other dtypes, shapes and rules before calls are left to SDPA; PyTorch's limit of 8 is soon reached.

Beyond its limit PyTorch would run FlexAttention without compilation, which materializes all attention weights.
"""

MAX_VALUES = 2**26
"""Elements of a mask that are evaluated at a time."""


class Flex:
    """FlexAttention for long sequences on a GPU under a mask that is a rule for positions."""

    def applies(self, call: AttentionCall) -> BlockMask | None:
        mask = call.mask
        if mask is None or call.can_inspect or torch.compiler.is_compiling():
            return None
        if call.dropout or call.bias is not None or call.sink is not None or mask.is_causal or mask.allows_all:
            return None
        if not _supports(call.q) or min(mask.queries, mask.keys) < MIN_FLEX_LENGTH or not mask.mask.by_position:
            return None
        return block_mask(mask, call.q.device)

    def run(self, call: AttentionCall, plan: BlockMask) -> Tensor:
        width, expanded = call.v.shape[-1], call.expand()
        try:
            out = flexible(expanded.q, expanded.k, expanded.v, plan, expanded.score_scale)
        except FailOnRecompileLimitHit:
            return Sdpa().run(call, True)
        return unpad(out, width)

    def explain(self, call: AttentionCall, plan: BlockMask) -> Dispatch:
        assert call.mask is not None
        why = f"{call.mask.mask} masks {plan.sparsity():.0f}% of the blocks, which FlexAttention leaves out on a GPU"
        return Dispatch("flex", why)


def flexible(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, scale: float) -> Tensor:
    """``softmax(scale · q kᵀ) v`` over the keys that the blocks and their rule allow.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        blocks: from `block_mask`.
        scale: the factor of the scores.

    Returns:
        (B, H, N, d); zeros in a fully masked row.

    Raises:
        FailOnRecompileLimitHit: after `MAX_KERNELS` compilations.
    """
    with torch._dynamo.config.patch(recompile_limit=MAX_KERNELS, accumulated_recompile_limit=4 * MAX_KERNELS):
        return compiled()(q, k, v, block_mask=blocks, scale=scale)


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """The compiled kernel, which is never left uncompiled."""
    return torch.compile(flex_attention, fullgraph=True)


_kept: dict[Hashable, BlockMask] = {}


def block_mask(mask: BoundMask, device: torch.device) -> BlockMask:
    """Return the blocks of keys that each block of queries attends to.

    They are kept for later calls with the same rules and tensors: making them takes longer than the attention.

    Source: Dong et al. 2024, "Flex Attention", arXiv:2412.05496, section 3.
    """
    if any(t.is_inference() for t in mask.mask.tensors):  # without a version, a change would be missed
        return _make(mask, device)
    key = _identity(mask.mask), mask.queries, mask.keys, mask.offset, mask.first, device
    blocks = _kept.pop(key, None) or _make(mask, device)
    _kept[key] = blocks  # at the end: the one that was not used for longest is dropped
    if len(_kept) > MAX_KEPT_MASKS:
        del _kept[next(iter(_kept))]
    return blocks


def _identity(value: Any) -> Hashable:
    """A key that is equal for equal rules of the same tensors; the kept block mask keeps these tensors alive."""
    if isinstance(value, Rule):
        fields = [field for field in dataclasses.fields(value) if field.init]  # type: ignore[arg-type]
        return type(value), *(_identity(getattr(value, field.name)) for field in fields)
    if isinstance(value, Tensor):
        return id(value), value._version
    return tuple(map(_identity, value)) if isinstance(value, tuple | list) else value


def _make(mask: BoundMask, device: torch.device) -> BlockMask:
    """Evaluate the mask for some blocks of queries at a time; `create_block_mask` evaluates it as a whole."""
    rows = max(1, MAX_VALUES // (mask.mask.batch_size * mask.mask.num_heads * mask.keys * BLOCK)) * BLOCK
    parts = []
    with torch.inference_mode(False):  # the blocks may be kept for training
        for start in range(0, mask.queries, rows):
            part = mask.tile(slice(start, min(start + rows, mask.queries)), slice(0, mask.keys))
            part = part.expand(*part.shape[:2], min(rows, mask.queries - start), mask.keys)
            padded = F.pad(part, (0, -part.shape[3] % BLOCK, 0, -part.shape[2] % BLOCK))
            parts.append(padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum((3, 5), dtype=torch.int32))
        count = torch.cat(parts, 2)
        full = count == BLOCK * BLOCK
        some = (count > 0) & ~full
        at, first = mask.first + mask.offset, mask.first

        def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return mask.mask.allowed(b, h, at + q, first + k)

        return BlockMask.from_kv_blocks(
            *_listed(some),
            *_listed(full),
            BLOCK_SIZE=BLOCK,
            mask_mod=rule,
            seq_lengths=(mask.queries, mask.keys),
        )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of selected blocks per row, and all blocks with the selected ones first, both int32."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _supports(q: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and q.shape[-1] >= 16
        and not torch._C._are_functorch_transforms_active()
    )
