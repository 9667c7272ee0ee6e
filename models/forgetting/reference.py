"""The formula in eager PyTorch: softmax attention plus the sums of the log gates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, project_qkv, rotate
from .forgetting import ForgettingAttention


def reference(
    layer: ForgettingAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    (B, N, _), H = x.shape, layer.num_heads
    Q, K, V = project_qkv(layer.qkv, x, None, H)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    log_f = F.logsigmoid(layer.forget(x)).mT  # (B, H, N)
    allowed = torch.ones(B, H, N, N, dtype=torch.bool) if mask is None else mask
    i, j, l = torch.meshgrid(*3 * [torch.arange(N)], indexing="ij")  # noqa: E741  the paper's
    between = ((j < l) & (l <= i)) | ((i <= l) & (l < j))  # (N, N, N): the gates between key j and query i
    D = torch.einsum("ijl,bhil,bhl->bhij", between.to(x), allowed.to(x), log_f)  # over permitted keys l
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + D
    weights = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask)
    return merge_heads(layer.output, weights @ V, mask)
