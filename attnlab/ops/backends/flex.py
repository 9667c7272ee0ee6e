"""FlexAttention on a GPU: the mask is compiled into the kernel, and fully masked blocks are left out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnlab.masks import BoundMask
from attnlab.ops.backends.sdpa import unpad
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MIN_FLEX_LENGTH = 1024
"""Queries or keys below which finding the blocks costs what leaving them out saves."""

MIN_MASKED_BLOCKS = 25.0
"""The percentage of masked blocks below which SDPA with a matrix is as fast."""


class Flex:
    """FlexAttention for masks that leave out many blocks on a GPU.

    Source: Dong et al. 2024, "Flex Attention", arXiv:2412.05496, section 3.
    """

    def applies(self, call: AttentionCall) -> BlockMask | None:
        """Return the blocks of keys that each block of queries attends to; None if too few are masked."""
        mask = call.mask
        if mask is None or call.can_inspect or torch.compiler.is_compiling() or not mask.mask.by_position:
            return None
        if call.dropout or call.bias is not None or call.sink is not None or mask.is_causal or mask.allows_all:
            return None
        if not _takes(call.q) or min(mask.queries, mask.keys) < MIN_FLEX_LENGTH:
            return None
        blocks = block_mask(mask, call.q.device)
        return blocks if blocks.sparsity() >= MIN_MASKED_BLOCKS else None

    def run(self, call: AttentionCall, plan: BlockMask) -> Tensor:
        width, call = call.v.shape[-1], call.expand()
        return unpad(compiled()(call.q, call.k, call.v, block_mask=plan, scale=call.score_scale), width)

    def explain(self, call: AttentionCall, plan: BlockMask) -> Dispatch:
        assert call.mask is not None
        why = f"{call.mask.mask} masks {plan.sparsity():.0f}% of the blocks, which FlexAttention leaves out on a GPU"
        return Dispatch("flex", why)


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """Return the compiled kernel: uncompiled, FlexAttention materializes all weights."""
    return torch.compile(flex_attention)


def _takes(q: Tensor) -> bool:
    dtypes = torch.float32, torch.float16, torch.bfloat16
    return q.is_cuda and q.dtype in dtypes and q.shape[-1] >= 16 and not torch._C._are_functorch_transforms_active()


def block_mask(mask: BoundMask, device: torch.device) -> BlockMask:
    """Return the blocks of a mask, and the mask as a function of single positions."""
    first_query, first = mask.first + mask.offset, mask.first

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask.mask.allowed(b, h, first_query + q, first + k)

    B, H = (count if count > 1 else None for count in (mask.mask.batch_size, mask.mask.num_heads))
    return create_block_mask(rule, B, H, mask.queries, mask.keys, device=device)
