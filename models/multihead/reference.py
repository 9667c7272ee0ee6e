"""The formula of multi-head attention in eager PyTorch, and the steps that other references share.

Axes: B batch, H heads, N queries, M keys, D embed_dim, d head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import ALiBi, Positions, Rotary, T5Bias


def reference(
    layer: MultiHeadBase,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, attn_bias, context)
    return merge_heads(layer.output, masked_softmax(scores, mask) @ V, mask)


def scores_and_values(
    layer: MultiHeadBase,
    x: Tensor,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
    qkv: nn.Linear | None = None,
) -> tuple[Tensor, Tensor]:
    """``Q Kᵀ / √d``, with positions and bias, (B, H, N, M), and V, (B, H, M, d); from ``layer.qkv`` by default."""
    Q, K, V = project_qkv(qkv or layer.qkv, x, context, layer.num_heads, layer.num_kv_heads)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer.positions, Q, K)
    return scores if attn_bias is None else scores + attn_bias, V


def project_qkv(
    qkv: nn.Linear, x: Tensor, context: Tensor | None, num_heads: int, num_kv_heads: int | None = None
) -> list[Tensor]:
    """``x W_Q``, ``context W_K`` and ``context W_V`` by head, (B, H, N or M, d) each; shared keys are repeated."""
    shared = num_kv_heads or num_heads
    sizes = [qkv.out_features * n // (num_heads + 2 * shared) for n in (num_heads, shared, shared)]
    parts = zip((x, *2 * [x if context is None else context]), qkv.weight.split(sizes), strict=True)
    bias = 3 * [0] if qkv.bias is None else qkv.bias.split(sizes)
    Q, K, V = (t @ W.T + b for (t, W), b in zip(parts, bias, strict=True))
    repeats = num_heads // shared
    return [split_heads(Q, num_heads), *(split_heads(t, shared).repeat_interleave(repeats, 1) for t in (K, V))]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * d) to (B, H, N, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax over the keys that ``mask`` allows; zeros in fully masked rows."""
    if mask is None:
        return scores.softmax(-1)
    empty = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~mask & ~empty, -torch.inf).softmax(-1).masked_fill(empty, 0)


def merge_heads(output: nn.Linear, heads: Tensor, mask: Tensor | None) -> Tensor:
    """``concat(head_1, ..., head_H) W_O``, (B, N, D); zeros where all heads are fully masked, without the bias."""
    out = output(heads.transpose(1, 2).flatten(2))
    return out if mask is None else out.masked_fill(~mask.any(-1).any(1).unsqueeze(-1), 0)


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Rotary positions: the pair i of ``x`` (B, H, N, d) at position m is rotated by the angle m · base^(-2i/r).

    Of the first r channels (i, i + r/2) are a pair, or (2i, 2i + 1) where they are interleaved.
    """
    if not isinstance(positions, Rotary):
        return x
    r, m = positions.width, torch.arange(x.shape[2]).double()
    theta = positions.base ** (-torch.arange(0, r, 2).double() / r)
    if positions.scaling is not None:
        theta = torch.tensor(positions.frequencies, dtype=torch.float64)
    cos, sin = (positions.attention_factor * f(torch.outer(m, theta)).to(x) for f in (torch.cos, torch.sin))
    half = positions.layout == "half"
    first, second = (slice(r // 2), slice(r // 2, r)) if half else (slice(0, r, 2), slice(1, r, 2))
    a, b, out = x[..., first], x[..., second], x.clone()
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def position_bias(positions: Positions, Q: Tensor, K: Tensor) -> Tensor:
    """What ALiBi or T5 add to the scores, (H, N, M); 0 for other positions."""
    offset = torch.arange(K.shape[2]) - torch.arange(Q.shape[2])[:, None]  # j - i
    if isinstance(positions, ALiBi):
        return -torch.tensor(positions.slopes, dtype=Q.dtype)[:, None, None] * offset.abs()
    if isinstance(positions, T5Bias):
        buckets = torch.tensor([[t5_bucket(j, positions) for j in row] for row in offset.tolist()])
        return positions.table.weight[buckets].permute(2, 0, 1)
    return Q.new_zeros(())


def t5_bucket(offset: int, t5: T5Bias) -> int:
    """The index of the bias of a key ``offset`` positions ahead of the query.

    Half of the buckets are for keys ahead, unless causal. Of each half, the nearer half holds one offset per bucket,
    and the others grow by the logarithm.
    """
    count = t5.num_buckets if t5.causal else t5.num_buckets // 2
    distance = max(-offset, 0) if t5.causal else abs(offset)
    start = 0 if t5.causal or offset <= 0 else count
    if distance < count // 2:
        return start + distance
    coarse = int(math.log(distance / (count // 2)) / math.log(t5.max_distance / (count // 2)) * (count - count // 2))
    return start + min(count // 2 + coarse, count - 1)
