"""Linear attention: the softmax is replaced by a product of positive features, so that cost grows linearly in n."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.kernelized import KernelizedBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import NormalizedScan

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp()),  # elu(x) + 1; ONNX has no Elu in float64
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
}


class LinearAttention(KernelizedBase):
    """``head_i = φ(Q_i) S / φ(Q_i) z`` with ``S = Σ_j φ(K_ij)ᵀ V_ij`` and ``z = Σ_j φ(K_ij)ᵀ``.

    Causal, the sums run over the tokens up to the query: a recurrence with a state of constant size (d_k × (d_k + 1)
    per head), computed in chunks.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    sections 3.2 and 3.3 (φ(x) = elu(x) + 1); Shen et al. 2021, "Efficient Attention", for φ = softmax over features.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        feature_map: φ, applied to each query and key: elu (elu(x) + 1), relu or softmax (over the features).
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for another feature map, and what `KernelizedBase` refuses.
    """

    card = Card(
        title="Linear attention",
        summary="products of positive features replace the softmax: time linear in n, a state of constant size",
        paper="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        authors="Katharopoulos et al.",
        year=2020,
        arxiv="2006.16236",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h positive matrices of rank at most d/h, rows summing to 1",
        use_case="long sequences where approximate recall suffices; decoding with constant memory",
        supports=("causal", "padding", "segments", "context", "cache", "weights", "equivariant"),
        parent="multihead",
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        feature_map: Literal["elu", "relu", "softmax"] = "elu",
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, device=device, dtype=dtype)
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, not {feature_map!r}")
        self.feature_map = feature_map

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> NormalizedScan:
        phi = FEATURE_MAPS[self.feature_map]
        return NormalizedScan(phi(at_least_float32(Q)), phi(at_least_float32(K)), mask)
