"""The formula of the paper, eager and quadratic: the ground truth of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.nn.convolution import ShortConvolution
from attnlab.nn.recurrent import EPS, RecurrentBase

from ..multihead.reference import merge_heads, project_qkv
from .linear import LinearAttention

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
}


def reference(layer: LinearAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and contains ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    phi = FEATURE_MAPS[layer.feature_map]
    weights = phi(Q) @ phi(K).mT  # (B, H, N, M)
    weights = weights if mask is None else weights * mask
    total = weights.sum(-1, keepdim=True)
    return merge_heads(layer.output, (weights / total.clamp_min(1e-300)).masked_fill(total == 0, 0) @ V, mask)


def by_document(run: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a causal recurrence, (b, n, D) to (b, n, D), to each document of each row; zero for padding.

    ``mask`` is Boolean (B, H, N, N) and contains ``causal``: a real token attends to itself and to the earlier tokens
    of its document.
    """
    if mask is None:
        return run(x)
    rows = []
    for tokens, allowed in zip(x, mask[:, 0], strict=True):
        row, left = torch.zeros_like(tokens), allowed.diagonal().clone()
        while left.any():
            document = allowed[int(left.nonzero()[-1])].nonzero().flatten()  # all that its last token attends to
            row = row.index_put((document,), run(tokens[document].unsqueeze(0))[0])
            left[document] = False
        rows.append(row)
    return torch.stack(rows)


def convolved(conv: ShortConvolution | None, x: Tensor) -> Tensor:
    """The weighted sums of the last tokens, (B, N, C)."""
    if conv is None:
        return x
    out = torch.zeros_like(x) if conv.bias is None else conv.bias.expand_as(x)
    for back in range(conv.size):
        out = out + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * conv.weight[:, back]
    return out


def normalized_and_gated(layer: RecurrentBase, heads: Tensor, x: Tensor) -> Tensor:
    """The output (B, N, D) for the outputs of the heads, (B, N, H, w)."""
    if layer.norm is not None:
        heads = heads / (heads.square().mean(-1, keepdim=True) + EPS).sqrt() * layer.norm.weight
    gates: dict[str, Callable[[Tensor], Tensor]] = {"none": torch.ones_like, "swish": F.silu, "sigmoid": torch.sigmoid}
    gate = heads.flatten(2) if layer.gate is None else layer.gate(x)
    out: Tensor = layer.output(heads.flatten(2) * gates[layer.output_gate](gate))
    return out
