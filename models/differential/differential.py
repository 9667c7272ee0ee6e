"""Differential attention: each head subtracts a second attention matrix from its first one."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import MultiHeadBase, rms_norm
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.bias import Bias
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions, parse_positions


class DifferentialAttention(MultiHeadBase):
    """``head = norm((softmax(Q₁ K₁ᵀ / √d) - λ softmax(Q₂ K₂ᵀ / √d)) V) · (1 - λ₀)``, with values twice as wide, 2d.

    ``λ = exp(λ_q1 · λ_k1) - exp(λ_q2 · λ_k2) + λ₀`` is one scalar per layer.

    Source: Ye et al. 2024, "Differential Transformer", section 2.1.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; D / h must be even, since each head has two queries and two keys.
        lambda_init: λ₀, at least 0 and below 1; the paper uses 0.8 - 0.6 exp(-0.3 (l - 1)) in layer l.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Differential attention",
        summary="the difference of two attention matrices per head: common noise cancels",
        paper="Differential Transformer",
        authors="Ye et al.",
        year=2024,
        arxiv="2410.05258",
        kind="another operator",
        heads="h pairs",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h differences of two softmax attention matrices; entries may be negative",
        use_case="retrieval from long contexts that are mostly irrelevant",
        supports=("causal", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
        parent="multihead",
        weights="signed",
    )

    renamed_keys: ClassVar = {"lambdas": "lambda_qk"}
    linear_in_weights = False  # because of the norm of each head

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 4,
        *,
        lambda_init: float = 0.8,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary", "alibi", "t5"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            causal=causal,
            dropout=dropout,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        if self.head_dim % 2:
            raise ValueError(f"embed_dim / num_heads ({self.head_dim}) must be even: each head has two queries")
        self.positions = parse_positions(
            positions, num_heads=num_heads, head_dim=self.head_dim // 2, causal=causal, device=device, dtype=dtype
        )
        if self.positions.name != "none":
            self._drop_equivariance()
        if not 0.0 <= lambda_init < 1.0:
            raise ValueError(f"lambda_init must be at least 0 and below 1, not {lambda_init}")
        self.lambda_init = lambda_init
        # λ_q1, λ_k1, λ_q2, λ_k2
        self.lambda_qk = nn.Parameter(torch.empty(4, self.head_dim // 2, device=device, dtype=dtype))
        nn.init.normal_(self.lambda_qk, std=0.1)
        self.norm = nn.RMSNorm(self.head_dim, eps=1e-5, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialize the projections and λ again."""
        super().reset_parameters()
        nn.init.normal_(self.lambda_qk, std=0.1)

    def _apply_positions(
        self, Q: Tensor, K: Tensor, bias: Tensor | None, context: Tensor | None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor, Bias | None]:
        """Rotate each of the two queries and keys separately, as heads of width d."""
        if self.positions.name != "rotary":
            return super()._apply_positions(Q, K, bias, context, cache)
        Q, K = (torch.cat(pair.chunk(2, -1), 1) for pair in (Q, K))  # (B, 2H, N, d)
        Q, K, added = super()._apply_positions(Q, K, bias, context, cache)
        return torch.cat(Q.chunk(2, 1), -1), torch.cat(K.chunk(2, 1), -1), added

    def _attention_map(
        self, Q: Float[Tensor, "B H N d_h"], K: Float[Tensor, "B H M d_h"], mask: BoundMask | None, bias: Bias | None
    ) -> Difference:
        (Q1, Q2), (K1, K2) = Q.chunk(2, -1), K.chunk(2, -1)
        q1, k1, q2, k2 = self.lambda_qk
        start = self.lambda_qk.new_tensor(self.lambda_init)  # a Python scalar would be float32 in ONNX
        weight = torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + start  # λ
        return Difference(SoftmaxMap(Q1, K1, mask, bias), SoftmaxMap(Q2, K2, mask, bias), weight)

    def _merge_heads(self, heads: Float[Tensor, "B H N d_h"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # each head is normalized separately
        return super()._merge_heads(rms_norm(heads, self.norm) * heads.new_tensor(1 - self.lambda_init), x)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)  # the heads share λ and the gains of the norm


class Difference(AttentionMap):
    """``first - weight · second``."""

    def __init__(self, first: AttentionMap, second: AttentionMap, weight: Tensor) -> None:
        super().__init__(first.shape, weight)
        self.first, self.second, self.weight = first, second, weight

    @property
    def changes(self) -> frozenset[str]:
        """Those that both terms support."""
        return self.first.changes & self.second.changes

    def _with_scores(self, options: ScoreOptions) -> Difference:
        return Difference(self.first._with_scores(options), self.second._with_scores(options), self.weight)

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        names = []
        for term, suffix in ((self.first, "_1"), (self.second, "_2")):
            part = a.part(suffix)
            term._explain(part, cell)
            names.append(part.last)
        weight = a.given("lambda_", self.weight, "λ: the factor of the second attention weight")
        a.compute("weight", f"{names[0]} - {weight} * {names[1]}", "the difference of the two attention weights")

    def apply(self, values: Float[Tensor, "B H M w"], *, dropout: float = 0.0) -> Float[Tensor, "B H N w"]:
        """The output for these values."""
        return self._subtract(self.first.apply(values, dropout=dropout), self.second.apply(values, dropout=dropout))

    def _rows(self, rows: Tensor) -> Tensor:
        return self._subtract(self.first._rows(rows), self.second._rows(rows))

    def _subtract(self, first: Tensor, second: Tensor) -> Tensor:
        # In the dtype of λ: in low precision the difference is mostly rounding error, which the norm amplifies.
        dtype = torch.promote_types(first.dtype, self.weight.dtype)
        return first.to(dtype) - self.weight * second.to(dtype)
