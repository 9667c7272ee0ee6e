"""The formula in eager PyTorch: softmax attention plus the sums of the log gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, scores_and_values
from .forgetting import ForgettingAttention


def reference(
    layer: ForgettingAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    (B, N, _), H = x.shape, layer.num_heads
    scores, V = scores_and_values(layer, x, attn_bias)
    log_f = F.logsigmoid(layer.forget(x)).mT  # (B, H, N)
    allowed = torch.ones(B, H, N, N, dtype=torch.bool) if mask is None else mask
    i, j, l = torch.meshgrid(*3 * [torch.arange(N)], indexing="ij")  # noqa: E741  the paper's
    between = ((j < l) & (l <= i)) | ((i <= l) & (l < j))  # (N, N, N): the gates between key j and query i
    D = torch.einsum("ijl,bhil,bhl->bhij", between.to(x), allowed.to(x), log_f)  # over permitted keys l
    return merge_heads(layer.output, masked_softmax(scores + D, mask) @ V, mask)
