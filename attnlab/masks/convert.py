"""Masks from and to the conventions of others, by name: each has its own polarity and shape."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.masks.mask import Mask, _Keys, _Matrix, integers, require_tensor
from attnlab.masks.rules import _Documents
from attnlab.utils.tracing import holds_values, may_check


def from_key_padding_mask(mask: Tensor) -> Mask:
    """From `torch.nn.MultiheadAttention`'s key_padding_mask: Boolean (B, N_k), True means *ignore this key*."""
    require_tensor("from_key_padding_mask(mask)", mask)
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            f"key_padding_mask is Boolean of shape (batch, keys), not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return _Keys(~mask)


def to_key_padding_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """To key_padding_mask, (B, N_k), True means *ignore*.

    Raises:
        ValueError: when the rule is not the same for every query and head.
    """
    return ~_keys_alone(mask, queries, keys, "key_padding_mask")


def from_attn_mask(mask: Tensor, num_heads: int | None = None) -> Mask:
    """From `torch.nn.MultiheadAttention`'s attn_mask, where True (or -inf) means *may not look*.

    Args:
        mask: (N_q, N_k) or (B·H, N_q, N_k); Boolean, or float of 0 and -inf only.
        num_heads: H, needed for three axes.

    Raises:
        TypeError: for other numbers: those are a bias, to be given as ``bias=``.
    """
    require_tensor("from_attn_mask(mask)", mask)
    if mask.is_floating_point():
        if may_check(mask) and not bool(((mask == 0) | (mask == -torch.inf)).all()):
            raise TypeError("this attn_mask holds numbers other than 0 and -inf: give it as attn_bias=")
        mask = mask == -torch.inf
    if mask.dtype != torch.bool or mask.dim() not in (2, 3):
        raise TypeError(
            f"attn_mask is Boolean or float of shape (queries, keys) or (batch * heads, queries, keys), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if mask.dim() == 3:
        if num_heads is None or mask.shape[0] % num_heads:
            raise ValueError(f"an attn_mask of {mask.shape[0]} maps (batch * heads) needs num_heads=, a divisor of it")
        mask = mask.unflatten(0, (-1, num_heads))
    return _Matrix(~mask)


def to_attn_mask(
    mask: Mask, queries: int, keys: int | None = None, *, num_heads: int = 1, batch_size: int | None = None
) -> Tensor:
    """To attn_mask, where True means *not allowed to attend*.

    Args:
        mask: the rule.
        queries: N_q.
        keys: N_k; as many as queries where not given.
        num_heads: H, needed for a rule that differs per batch item or per head.
        batch_size: B, needed for a rule that differs per head but not per batch item; 1 by default.

    Returns:
        Boolean: (N_q, N_k), or (B·H, N_q, N_k) where items or heads differ.

    Raises:
        ValueError: for a rule of another number of heads or batch items.
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
    """From Hugging Face's attention_mask: (B, N_k), 1 is a real token and 0 is padding."""
    require_tensor("from_attention_mask(mask)", mask)
    if mask.dim() != 2 or (may_check(mask) and not bool(((mask == 0) | (mask == 1)).all())):
        raise TypeError(
            f"attention_mask has the shape (batch, keys) and holds 1 (real) or 0 (padding), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return _Keys(mask == 1)


def to_attention_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """To Hugging Face's attention_mask: int64 (B, N_k), 1 is real; raises like `to_key_padding_mask`."""
    return _keys_alone(mask, queries, keys, "attention_mask").long()


def from_cu_seqlens(cu_seqlens: Tensor, *, total: int | None = None) -> Mask:
    """From the boundaries of packed sequences, (S + 1,): 0, the cumulative sums of the lengths, the total.

    Args:
        cu_seqlens: whole numbers, (S + 1,).
        total: the length of the packed row, the last boundary; without it that is read from the tensor, which needs
            values (not possible in a trace) and waits for a GPU. Positions behind the last boundary are one more
            document.

    Raises:
        ValueError: for other numbers or another shape, where they can be checked; a last boundary above ``total``.
    """
    starts = integers("from_cu_seqlens(cu_seqlens)", cu_seqlens, ("sequences + 1",))
    if starts.numel() < 2 or (may_check(starts) and (int(starts[0]) != 0 or bool((starts.diff() < 0).any()))):
        raise ValueError("cu_seqlens starts at 0 and never falls: [0, n1, n1 + n2, ...]")
    if total is None:
        if not holds_values(starts):
            raise ValueError("from_cu_seqlens(cu_seqlens) has no values here to read the length from; give total=")
        total = int(starts[-1])
    elif may_check(starts) and int(starts[-1]) > total:
        raise ValueError(f"cu_seqlens ends at {int(starts[-1])}, more than total={total}")
    places = torch.arange(total, device=starts.device)
    return _Documents(torch.searchsorted(starts[1:].contiguous(), places, right=True))


def to_cu_seqlens(mask: Mask) -> Tensor:
    """The boundaries, int32 (S + 1,), of a ``documents`` mask over one packed row.

    Raises:
        ValueError: for another mask, or documents that are not contiguous.
    """
    if not isinstance(mask, _Documents) or (mask.ids.dim() == 2 and mask.ids.shape[0] != 1):
        raise ValueError(f"only documents(ids) over one row has cu_seqlens, not {mask}")
    ids, counts = torch.unique_consecutive(mask.ids.flatten(), return_counts=True)
    if ids.unique().numel() != ids.numel():
        raise ValueError("a document that is interrupted by another has no cu_seqlens")
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _keys_alone(mask: Mask, queries: int, keys: int | None, name: str) -> Tensor:
    keys = queries if keys is None else keys
    matrix = mask.materialize(queries, keys)
    matrix = matrix[(None,) * (4 - matrix.dim())].expand(-1, -1, queries, keys)
    first = matrix[:, 0, 0]
    if not bool((matrix == first[:, None, None]).all()):
        raise ValueError(f"{mask} is not the same for every query, so it cannot be given as {name}; use to_attn_mask")
    return first
