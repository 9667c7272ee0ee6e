"""FlexAttention on a GPU: the rule of a mask compiled into the kernel, and blocks of keys that it forbids left out.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnlab.masks import BoundMask

LONG = 1024
"""Below so many queries or keys, finding the blocks costs what leaving them out saves."""

SPARSE = 25.0
"""Per cent of the blocks that must be forbidden; for less a fused kernel with a matrix is as fast."""


def block_mask(q: Tensor, k: Tensor, mask: BoundMask) -> BlockMask | None:
    """The blocks of keys that the mask leaves to each block of queries; None where there is nothing to gain.

    Args:
        q: (B, H, N, d), on a GPU.
        k: (B, H, M, d).
        mask: who may look at whom.

    Source: Dong et al. 2024, "Flex Attention", arXiv:2412.05496, section 3.
    """
    N, M = q.shape[2], k.shape[2]
    if not _takes(q) or min(N, M) < LONG or not mask.mask.by_position:
        return None
    blocks = _blocks(mask, q.device)
    return blocks if blocks.sparsity() >= SPARSE else None


def flexible(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, scale: float) -> Tensor:
    """``softmax(scale · q kᵀ) v`` over what the blocks and the rule in them permit.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        blocks: from `block_mask`.
        scale: what a score is multiplied by.

    Returns:
        (B, H, N, d); zeros in a row that may look at nothing.
    """
    return compiled()(q, k, v, block_mask=blocks, scale=scale)


@functools.cache
def compiled() -> Callable[..., Tensor]:
    """The kernel: uncompiled, FlexAttention writes down the whole map."""
    return torch.compile(flex_attention)


def _takes(q: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and q.shape[-1] >= 16
        and not torch._C._are_functorch_transforms_active()
    )


def _blocks(mask: BoundMask, device: torch.device) -> BlockMask:
    at, first = mask.first + mask.offset, mask.first

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask.mask.allowed(b, h, at + q, first + k)

    B, H = (count if count > 1 else None for count in (mask.mask.batch_size, mask.mask.num_heads))
    return create_block_mask(rule, B, H, mask.queries, mask.keys, device=device)
