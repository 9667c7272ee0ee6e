"""The formula in eager PyTorch: multi-head attention under the masks of local and long-range heads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .strided import StridedAttention


def reference(
    layer: StridedAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    j, stride = torch.arange(x.shape[1]), layer.stride
    i = j[:, None]
    if layer.pattern == "strided":  # A⁽¹⁾ and A⁽²⁾ of section 4.3
        local, long_range = (i - j).abs() <= stride, (i - j) % stride == 0
    else:
        local, long_range = i // stride == j // stride, (j % stride >= stride - layer.summary).expand(len(j), -1)
    allowed = torch.stack([local if is_local else long_range for is_local in layer.is_local]).expand(len(x), -1, -1, -1)
    return multihead(layer, x, allowed if mask is None else allowed & mask, attn_bias)
