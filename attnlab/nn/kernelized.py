"""Attention whose weights are products of features of queries and keys: time linear in the length.

Axes: B batch, N queries, M keys, D embed_dim, H heads, d head_dim.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.cache import RecurrentState
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.scan import NormalizedScan


class KernelizedBase(MultiHeadBase):
    """``head_i = φ(Q_i) S / φ(Q_i) z`` with ``S = Σ_j φ(K_j)ᵀ V_j`` and ``z = Σ_j φ(K_j)ᵀ``.

    A subclass returns the features φ in `_attention_map`. ``dropout`` drops features of the heads' output.
    """

    cache_type = RecurrentState

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,  # not supported: there are no scores to add it to
        context: Float[Tensor, "B M D"] | None = None,
        cache: RecurrentState | None = None,  # type: ignore[override]
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, context)
        attention = self._attention_map(Q, K, mask)
        if cache is None:
            heads = attention.apply(V)  # φ(Q) S / φ(Q) z
        else:
            heads, state = attention.step(V, cache.state)
            cache.replace(x.shape[1], *state)
        return self._merge_heads(F.dropout(heads, self.dropout, self.training), x)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> NormalizedScan:
        raise NotImplementedError(f"{type(self).__name__} has no _attention_map")
