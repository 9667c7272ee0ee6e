"""The formula of the paper in plain PyTorch, used as ground truth by the tests, and the steps that mechanisms share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import ALiBi, Rotary, T5Bias


def reference(
    layer: MultiHeadBase,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """Return what ``layer(x)`` must return: softmax attention, with keys and values shared by groups of heads.

    ``mask`` is Boolean (B, H, N, M) and includes ``causal``. Mechanisms that differ in their attention pattern only
    call this with that pattern as the mask.
    """
    Q, K, V = project(layer, x, context)  # (B, H, N, d) and (B, H, M, d)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer, x.shape[1], K.shape[2])
    weights = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask)
    return merge(layer, weights @ V, mask)


def project(layer: MultiHeadBase, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The queries (B, H, N, d), and the keys and values (B, H, M, d), repeated for the heads that share them."""
    H, H_kv, d = layer.num_heads, layer.num_kv_heads, layer.head_dim
    sizes = [H * d, H_kv * d, H_kv * d]
    matrices = layer.qkv.weight.split(sizes)
    biases = (0.0, 0.0, 0.0) if layer.qkv.bias is None else layer.qkv.bias.split(sizes)
    inputs = (x, *2 * (x if context is None else context,))
    Q, K, V = (
        (source @ matrix.T + bias).unflatten(-1, (-1, d)).transpose(1, 2)
        for source, matrix, bias in zip(inputs, matrices, biases, strict=True)
    )
    if isinstance(layer.positions, Rotary):
        Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    return Q, K.repeat_interleave(H // H_kv, 1), V.repeat_interleave(H // H_kv, 1)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax over the allowed keys; zeros in a fully masked row."""
    if mask is None:
        return scores.softmax(-1)
    empty = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~mask, -math.inf).masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def merge(layer: MultiHeadBase, heads: Tensor, mask: Tensor | None) -> Tensor:
    """Concatenate the heads (B, H, N, d) and project them; zeros for a token that is fully masked in every head."""
    y = layer.output(heads.transpose(1, 2).flatten(2))
    return y if mask is None else y.masked_fill(~mask.any(-1).any(1).unsqueeze(-1), 0)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pairs of the first r channels of x (..., N, d): at position m, pair i by the angle m · base^(-2i/r).

    A pair is (i, i + r/2), or (2i, 2i + 1) in the interleaved layout.
    """
    r, rest = rotary.width, x[..., rotary.width :]
    theta = x.new_tensor(rotary.frequencies if rotary.scaling else [rotary.base ** (-2 * i / r) for i in range(r // 2)])
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * theta  # (N, r/2)
    cos, sin = rotary.attention_factor * angles.cos(), rotary.attention_factor * angles.sin()
    if rotary.layout == "half":
        a, b = x[..., : r // 2], x[..., r // 2 : r]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)
    a, b = x[..., 0:r:2], x[..., 1:r:2]
    return torch.cat([torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2), rest], -1)


def position_bias(layer: MultiHeadBase, queries: int, keys: int) -> Tensor | float:
    """What ALiBi or T5 adds to the scores (H, N, M); 0 for other positions."""
    offsets = torch.arange(keys) - torch.arange(queries)[:, None]  # j - i
    if isinstance(layer.positions, ALiBi):
        return -layer.qkv.weight.new_tensor(layer.positions.slopes)[:, None, None] * offsets.abs()
    if isinstance(layer.positions, T5Bias):
        buckets = [[t5_bucket(offset, layer.positions) for offset in row] for row in offsets.tolist()]
        return layer.positions.table.weight[torch.tensor(buckets)].permute(2, 0, 1)
    return 0.0


def t5_bucket(offset: int, t5: T5Bias) -> int:
    """The bucket of a key ``offset`` positions after the query: exact for near keys, logarithmic for distant ones.

    Unless the layer is causal, the upper half of the buckets is for keys after the query.
    """
    count = t5.num_buckets if t5.causal else t5.num_buckets // 2
    distance = max(-offset, 0) if t5.causal else abs(offset)
    start = 0 if t5.causal or offset <= 0 else count
    exact = count // 2
    if distance < exact:
        return start + distance
    coarse = int(math.log(distance / exact) / math.log(t5.max_distance / exact) * (count - exact))
    return start + min(exact + coarse, count - 1)


def turned(x: Tensor, d: int, rotary: Rotary) -> Tensor:
    """`rotate` for heads that are not separated yet: (B, N, h · d)."""
    return rotate(x.unflatten(-1, (-1, d)).transpose(1, 2), rotary).transpose(1, 2).flatten(2)


def distance(layer: MultiHeadBase, head: int, offset: int) -> Tensor | float:
    """One entry of `position_bias`."""
    if isinstance(layer.positions, ALiBi):
        return -layer.positions.slopes[head] * abs(offset)
    if isinstance(layer.positions, T5Bias):
        return layer.positions.table.weight[t5_bucket(offset, layer.positions), head]
    return 0.0
