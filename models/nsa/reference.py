"""The formula of the paper in plain PyTorch, with whole matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, project_qkv, rotate
from .nsa import NativeSparseAttention


def reference(layer: NativeSparseAttention, x: Tensor, mask: Tensor) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    H, H_kv, N = layer.num_heads, layer.num_kv_heads, x.shape[1]
    l, s, b = layer.compress_block, layer.compress_stride, layer.select_block  # noqa: E741
    Q, K, V = project_qkv(layer.qkv, x, None, H, H_kv)  # (B, H, N, d)
    scores = rotate(Q, layer.positions) @ rotate(K, layer.positions).mT / layer.head_dim**0.5

    starts = range(0, N - l + 1, s)
    importance = torch.zeros(len(x), H, N, -(-N // b), dtype=x.dtype)
    compressed = torch.zeros_like(Q)
    if starts:
        pools = [pool.repeat_interleave(H // H_kv, 0)[:, :, None] for pool in (layer.key_pool, layer.value_pool)]
        K_c, V_c = (
            torch.stack([(t[:, :, a : a + l] * pool).sum(2) for a in starts], 2)
            for t, pool in zip((K, V), pools, strict=True)
        )
        visible = torch.stack([mask[..., a : a + l].all(-1) for a in starts], -1)
        weights = masked_softmax(Q @ K_c.mT / layer.head_dim**0.5, visible)
        compressed = weights @ V_c
        for i, a in enumerate(starts):
            for j in range(importance.shape[-1]):
                common = min(a + l, (j + 1) * b) - max(a, j * b)
                importance[..., j] += weights[..., i].detach() * max(common, 0) / s
    importance = importance.unflatten(1, (H_kv, -1)).sum(2).repeat_interleave(H // H_kv, 1)
    own, block = torch.arange(N)[:, None] // b, torch.arange(importance.shape[-1])
    importance = importance.masked_fill((block == 0) | (block == own) | (block == own - 1), torch.inf)
    some = torch.stack([part.any(-1) for part in mask.split(b, -1)], -1)
    ranked = importance.masked_fill(~some, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = (ranked.argsort(-1) < layer.num_selected).repeat_interleave(b, -1)[..., :N]
    near = torch.arange(N)[:, None] - torch.arange(N) < layer.window_size
    branches = compressed, masked_softmax(scores, mask & chosen) @ V, masked_softmax(scores, mask & near) @ V

    gates = torch.sigmoid(x @ layer.gate.weight.T + (0 if layer.gate.bias is None else layer.gate.bias))
    gates = gates.unflatten(-1, (3, H)).permute(2, 0, 3, 1)  # (3, B, H, N)
    return merge_heads(layer.output, sum(g.unsqueeze(-1) * out for g, out in zip(gates, branches, strict=True)), mask)
