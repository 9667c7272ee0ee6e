"""Sparse attention: α-entmax gives most keys a weight of exactly zero, and the scores decide which."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap, at_least_float32
from attnlab.positions import Positions
from attnlab.positions.base import exact


class EntmaxAttention(MultiHeadBase):
    """``weight_j = [(α - 1) s_j - τ]₊^(1 / (α - 1))``, with τ such that they sum to one; α = 2 is sparsemax.

    Source: Peters et al. 2019, "Sparse Sequence-to-Sequence Models", section 3; Martins and Astudillo 2016 for α = 2.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        alpha: above 1, where softmax is the limit, up to 4; the larger, the sparser.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Entmax attention",
        summary="α-entmax in place of softmax: exact zeros for what does not matter",
        paper="Sparse Sequence-to-Sequence Models",
        authors="Peters et al.",
        year=2019,
        arxiv="1905.05702",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h sparse maps whose rows sum to one",
        use_case="maps that are read by people; tasks with few places to look at",
        supports=("causal", "padding", "segments", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
        parent="multihead",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        alpha: float = 1.5,
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
            positions=positions,
            device=device,
            dtype=dtype,
        )
        if not 1.0 < alpha <= 4.0:
            raise ValueError(f"alpha must be above 1 (softmax is the limit) and at most 4, not {alpha}")
        self.alpha = alpha

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def normalize(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            return entmax(scores, self.alpha, permitted)

        return RowwiseMap(Q, K, mask, bias, normalize)


def entmax(scores: Float[Tensor, "... M"], alpha: float, permitted: Tensor | None = None) -> Float[Tensor, "... M"]:
    """α-entmax over the last axis: exact zeros, rows that sum to one, and zeros where nothing is permitted.

    Float16 and bfloat16 are computed in float32. Derivatives of any order are those of the weights that are not zero.
    """
    if permitted is not None:
        scores = scores.masked_fill(~permitted, -torch.inf)
    function = _Entmax if torch.compiler.is_compiling() else _EntmaxBothWays  # no compiler takes a jvp of our own
    out: Tensor = function.apply(at_least_float32(scores), alpha)  # type: ignore[no-untyped-call]
    return out.to(scores.dtype)


class _Entmax(torch.autograd.Function):
    """τ by bisection; the gradient is that of the weights that are not zero (Peters et al. 2019, proposition 2)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, alpha: float) -> Tensor:
        if not scores.shape[-1]:
            return scores.clone()
        dtype = scores.dtype
        if alpha > 2:  # the power below one magnifies a rounding error near zero
            scores = scores.to(exact(scores.device))
        z = (scores - scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)).mul_(alpha - 1)
        # The sum of the weights falls from at least 1 at τ = -1 to at most 1 at τ + 1 = min((α - 1) ln M, 1).
        low = torch.zeros_like(z[..., :1])  # of τ + 1
        step = ((alpha - 1) * z.new_ones(z.shape[-1]).sum().log()).clamp(max=1.0)
        for _ in range(60 if z.dtype == torch.float64 else 30):
            step = step / 2
            middle = low + step
            low = torch.where(_powers(z, middle, alpha).sum(-1, keepdim=True) >= 1, middle, low)
        weights = _powers(z, low, alpha)
        return (weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.alpha = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return _moved(gradient, weights, ctx.alpha), None


class _EntmaxBothWays(_Entmax):
    """The same in forward mode too."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        _Entmax.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (weights,) = ctx.saved_tensors
        return _moved(tangent, weights, ctx.alpha)


def _moved(direction: Float[Tensor, "... M"], weights: Float[Tensor, "... M"], alpha: float) -> Float[Tensor, "... M"]:
    """``direction`` times the Jacobian, which is symmetric: a gradient going back, and a tangent going forward."""
    tiny = torch.finfo(weights.dtype).tiny
    # A base of 1 in place of 0, whose power would be infinite and make a second derivative 0 · inf.
    slope = torch.where(weights > 0, weights.masked_fill(weights == 0, 1.0) ** (2 - alpha), 0.0)
    flow = direction * slope
    return flow - flow.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp(min=tiny) * slope


def _powers(z: Float[Tensor, "... M"], shift: Float[Tensor, "... 1"], alpha: float) -> Float[Tensor, "... M"]:
    """``[z - τ]₊^(1 / (α - 1))`` for a shift of τ + 1."""
    if alpha < 1.5:  # as a power, a rounding error of the base near 1 would be 1 / (α - 1) times as large
        return (z - shift).clamp_(min=-1).log1p_().div_(alpha - 1).exp_()
    return (z - (shift - 1)).clamp_(min=0) ** (1 / (alpha - 1))
