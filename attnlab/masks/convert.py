"""Conversions between masks and the mask conventions of other libraries, which differ in polarity and shape."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.masks.arguments import as_int64, require_tensor
from attnlab.masks.mask import Mask, TensorMask
from attnlab.masks.sequence import KeyMask, SegmentMask
from attnlab.utils.tracing import can_inspect_values, has_values


def from_key_padding_mask(mask: Tensor) -> Mask:
    """Convert the key_padding_mask of `torch.nn.MultiheadAttention`: Boolean (B, N_k), True means *ignore this key*."""
    require_tensor("from_key_padding_mask(mask)", mask)
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            f"key_padding_mask is Boolean of shape (batch, keys), not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return KeyMask(~mask)


def to_key_padding_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """Convert to a key_padding_mask, (B, N_k), True means *ignore this key*.

    Raises:
        ValueError: if the mask is not the same for every query and head.
    """
    return ~_keys_alone(mask, queries, keys, "key_padding_mask")


def from_attn_mask(mask: Tensor, num_heads: int | None = None) -> Mask:
    """Convert the attn_mask of `torch.nn.MultiheadAttention`, where True (or -inf) means *do not attend*.

    Args:
        mask: (N_q, N_k) or (B·H, N_q, N_k); Boolean, or float of 0 and -inf only.
        num_heads: H, required for three axes.

    Raises:
        TypeError: for other values, which are a bias (pass them as ``attn_bias=``).
    """
    require_tensor("from_attn_mask(mask)", mask)
    if mask.is_floating_point():
        if can_inspect_values(mask) and not bool(((mask == 0) | (mask == -torch.inf)).all()):
            raise TypeError("this attn_mask holds values other than 0 and -inf; pass it as attn_bias=")
        mask = mask == -torch.inf
    if mask.dtype != torch.bool or mask.dim() not in (2, 3):
        raise TypeError(
            f"attn_mask is Boolean or float of shape (queries, keys) or (batch * heads, queries, keys), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if mask.dim() == 3:
        if num_heads is None or mask.shape[0] % num_heads:
            raise ValueError(
                f"an attn_mask whose first axis (batch * heads) is {mask.shape[0]} needs num_heads=, a divisor of it"
            )
        mask = mask.unflatten(0, (-1, num_heads))
    return TensorMask(~mask)


def to_attn_mask(
    mask: Mask, queries: int, keys: int | None = None, *, num_heads: int = 1, batch_size: int | None = None
) -> Tensor:
    """Convert to an attn_mask, where True means *do not attend*.

    Args:
        mask: the mask.
        queries: N_q.
        keys: N_k; equal to ``queries`` by default.
        num_heads: H, required for a mask that differs per batch item or per head.
        batch_size: B, required for a mask that differs per head but not per batch item.

    Returns:
        Boolean (N_q, N_k), or (B·H, N_q, N_k) if batch items or heads differ.

    Raises:
        ValueError: for a mask of another number of heads or batch items.
    """
    matrix = ~mask.materialize(queries, keys)
    matrix = matrix.expand(*matrix.shape[:-2], queries, queries if keys is None else keys)
    if matrix.dim() == 2:
        return matrix
    items, heads = matrix.shape[:2]
    batch_size = items if batch_size is None else batch_size
    for name, have, wanted in (("num_heads", heads, num_heads), ("batch_size", items, batch_size)):
        if have not in (1, wanted):
            raise ValueError(f"{mask} needs {name}={have}, not {wanted}")
    return matrix.expand(batch_size, num_heads, -1, -1).flatten(0, 1)


def from_attention_mask(mask: Tensor) -> Mask:
    """Convert the attention_mask of Hugging Face: (B, N_k), 1 is a real token and 0 is padding."""
    require_tensor("from_attention_mask(mask)", mask)
    if mask.dim() != 2 or (can_inspect_values(mask) and not bool(((mask == 0) | (mask == 1)).all())):
        raise TypeError(
            f"attention_mask has the shape (batch, keys) and holds 1 (real) or 0 (padding), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return KeyMask(mask == 1)


def to_attention_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """Convert to the attention_mask of Hugging Face, int64 (B, N_k); raises like `to_key_padding_mask`."""
    return _keys_alone(mask, queries, keys, "attention_mask").long()


def from_cu_seqlens(cu_seqlens: Tensor, *, total: int | None = None) -> Mask:
    """Convert the boundaries of S packed sequences, (S + 1,): 0 and the cumulative sums of their lengths.

    Args:
        cu_seqlens: integers, (S + 1,).
        total: the length of the packed row. By default it is the last boundary, which is read from the tensor: that
            is not possible in a trace, and waits for a GPU. Positions after the last boundary are one more document.

    Raises:
        ValueError: for another shape; for boundaries that decrease or exceed ``total``, where values can be checked.
    """
    starts = as_int64("from_cu_seqlens(cu_seqlens)", cu_seqlens, ("sequences + 1",))
    if starts.numel() < 2 or (can_inspect_values(starts) and (int(starts[0]) != 0 or bool((starts.diff() < 0).any()))):
        raise ValueError("cu_seqlens must start at 0 and must not decrease: [0, n1, n1 + n2, ...]")
    if total is None:
        if not has_values(starts):
            raise ValueError("the length cannot be read from cu_seqlens in a trace; give total=")
        total = int(starts[-1])
    elif can_inspect_values(starts) and int(starts[-1]) > total:
        raise ValueError(f"cu_seqlens ends at {int(starts[-1])}, more than total={total}")
    positions = torch.arange(total, device=starts.device)
    return SegmentMask(torch.searchsorted(starts[1:].contiguous(), positions, right=True))


def to_cu_seqlens(mask: Mask) -> Tensor:
    """Convert a ``documents`` mask over one packed row to boundaries, int32 (S + 1,).

    Raises:
        ValueError: for another mask, or if a document is not contiguous.
    """
    if not isinstance(mask, SegmentMask) or mask.batch_size != 1:
        raise ValueError(f"only documents(ids) over one row has cu_seqlens, got {mask}")
    segments = mask.segments(mask.ids.shape[-1])
    if segments is None:
        raise ValueError("a document that is interrupted by another cannot be converted to cu_seqlens")
    ends = [part.stop for part in segments]
    return torch.tensor([0, *ends], dtype=torch.int32, device=mask.ids.device)


def _keys_alone(mask: Mask, queries: int, keys: int | None, name: str) -> Tensor:
    keys = queries if keys is None else keys
    matrix = mask.materialize(queries, keys)
    matrix = matrix[(None,) * (4 - matrix.dim())].expand(-1, -1, queries, keys)
    first = matrix[:, 0, 0]
    if not bool((matrix == first[:, None, None]).all()):
        raise ValueError(f"{mask} is not the same for every query, so it cannot be given as {name}; use to_attn_mask")
    return first
