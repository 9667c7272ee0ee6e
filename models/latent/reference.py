"""The formula in eager PyTorch: keys and values of all heads from one latent vector per token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnlab.positions import Rotary

from ..multihead.reference import masked_softmax, merge_heads, rotate, split_heads
from .latent import LatentAttention


def reference(layer: LatentAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    h, d_k, d_r, d_c = layer.num_heads, layer.head_dim, layer.rope_head_dim, layer.kv_latent_dim
    c, k_R = (x @ layer.kv_down.weight.T).split([d_c, d_r], -1)  # W_DKV x and W_KR x
    W_UK, W_UV = layer.kv_up.weight.chunk(2)
    c = rms_norm(c, layer.kv_norm)
    k_C, v = split_heads(c @ W_UK.T, h), split_heads(c @ W_UV.T, h)  # (B, h, N, d_k)
    if layer.q_down is not None and layer.q_norm is not None:
        x = rms_norm(x @ layer.q_down.weight.T, layer.q_norm)
    q_C, q_R = split_heads(x @ layer.query.weight.T, h).split([d_k, d_r], -1)
    q_R, k_R = rotate(q_R, layer.positions), rotate(k_R.unsqueeze(1), layer.positions)
    if isinstance(layer.positions, Rotary):  # the temperature of YaRN applies to the whole score
        temperature, width = layer.positions.attention_factor**2, layer.positions.width
        q_C = q_C * temperature
        q_R = torch.cat([q_R[..., :width], q_R[..., width:] * temperature], -1)
    scores = (q_C @ k_C.mT + q_R @ k_R.mT) / math.sqrt(d_k + d_r)  # (B, h, N, N)
    weights = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask)
    return merge_heads(layer.output, weights @ v, mask)


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Each vector divided by its root mean square, times the gains."""
    assert norm.eps is not None
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
