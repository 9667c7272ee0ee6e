"""Performer attention: random features approximate the softmax, so that cost grows linearly in n."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.kernelized import KernelizedBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import NormalizedScan
from attnlab.utils.tracing import full_precision


class PerformerAttention(KernelizedBase):
    """``head_i = Σ_j φ(Q_i)·φ(K_j) V_j / Σ_j φ(Q_i)·φ(K_j)`` with ``φ(x) = exp(ω x - ‖x‖² / 2) / √m``.

    Queries and keys are divided by d_k^(1/4) first. The rows of ω are m random vectors, normally distributed and
    orthogonal in blocks of d_k. Then φ(Q)·φ(K) is exp(Q·K / √d_k) on average: an approximation of softmax attention,
    with an error that falls as 1 / √m.

    Features of queries are divided by the largest of each query, those of keys by the largest so far; neither changes
    the output, and later tokens have no influence.

    Source: Choromanski et al. 2020, "Rethinking Attention with Performers", sections 2.3 and 2.4 (FAVOR+).

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        num_features: m, the number of random features; d_k · log(d_k) by default, and at least 1.
        feature_seed: the seed of the random features; torch's global generator draws them by default.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        TypeError: for a number of features or a seed that is not an integer.
        ValueError: for a number of features below 1, a negative seed, and what `KernelizedBase` refuses.
    """

    card = Card(
        title="Performer attention",
        summary="random features approximate the softmax: time linear in n, a state of constant size",
        paper="Rethinking Attention with Performers",
        authors="Choromanski et al.",
        year=2020,
        arxiv="2009.14794",
        kind="approximation",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h positive matrices that are softmax matrices on average",
        use_case="long sequences with scores near 0, as a replacement of softmax attention",
        supports=("causal", "padding", "segments", "context", "cache", "weights", "equivariant"),
        parent="linear",
        constant_state=True,
    )

    projection: Tensor
    """ω, (m, d_k), the same for all heads."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_features: int | None = None,
        feature_seed: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, **factory)
        if num_features is None:
            num_features = max(1, int(self.head_dim * math.log(self.head_dim)))
        self.num_features = check_positive_int("num_features", num_features)
        self.feature_seed = None if feature_seed is None else check_positive_int("feature_seed", feature_seed, 0)
        self.register_buffer("projection", torch.empty(num_features, self.head_dim, **factory))
        self._reset_projection()

    def reset_parameters(self) -> None:
        """Initialize the parameters again, and draw the random features."""
        super().reset_parameters()
        self._reset_projection()

    def _reset_projection(self) -> None:
        self.redraw(None if self.feature_seed is None else torch.Generator().manual_seed(self.feature_seed))

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other random features, as the paper does from time to time in training.

        Args:
            generator: of the CPU; torch's global one by default.
        """
        if not self.projection.is_meta:
            self.projection.copy_(orthogonal_gaussian(self.num_features, self.head_dim, generator))

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> NormalizedScan:
        Q, K = at_least_float32(Q), at_least_float32(K)
        scale = Q.new_full((), self.head_dim).sqrt().sqrt()  # not a Python scalar, which ONNX rounds to float32
        Q, K = Q / scale, K / scale
        projection = self.projection.to(Q.dtype)
        with full_precision(Q.device):
            q, k = Q @ projection.T, K @ projection.T  # ω x, (B, H, N or M, m)
        largest_q, largest_k = (x.detach().amax(-1, keepdim=True) for x in (q, k))
        # ‖Q‖² would cancel, as all factors of a query do; the limit keeps the sum of an extreme key finite.
        norm = K.square().sum(-1, keepdim=True).clamp(max=1e30) / 2
        return NormalizedScan((q - largest_q).exp(), (k - largest_k).exp(), mask, (largest_k - norm).squeeze(-1))

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)  # all heads have the same features

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, num_features={self.num_features}"


def orthogonal_gaussian(count: int, width: int, generator: torch.Generator | None = None) -> Float[Tensor, "m d"]:
    """Return normally distributed vectors, orthogonal in blocks of ``width`` vectors, in float64 on the CPU.

    Source: Choromanski et al. 2020, section 2.4; Yu et al. 2016, "Orthogonal Random Features".
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    Q, R = torch.linalg.qr(normal(-(-count // width), width, width))
    directions = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # uniform: the signs of Q alone are not
    return directions.flatten(0, 1)[:count] * normal(count, width).norm(dim=-1, keepdim=True)
