"""Stick-breaking attention: from the nearest key backwards, each key takes a share of what the nearer ones left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask, Mask, sliding_window
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import MAX_LISTED, Arithmetic, Row, dot_product, sigmoid
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap, at_least_float32, scaled_dot_product
from attnlab.utils.tracing import full_precision

OTHER_TOKENS = ~sliding_window(1)

NOTHING_LEFT = -80.0
"""The logarithm of the smallest remainder. A CPU takes several times as long for an exponential near or below the
smallest normal float32."""


class StickBreakingAttention(MultiHeadBase):
    """``A_ij = β_ij Π_{j < s < i} (1 - β_is)`` with ``β = σ(Q Kᵀ / √d_k)``, for keys j < i; a query i.

    A query breaks a stick of length 1: the nearest key takes the fraction β of it, the key before takes its fraction
    of the rest, and so on. What is left after the first key goes to no key, so the weights sum to less than one. A
    masked key takes nothing. A token without an earlier key, such as the first one, returns zeros.

    Source: Tan et al. 2024, "Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
    section 2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        attend_current: whether a token also attends to itself, which breaks the stick first: an option of the
            authors' kernel that is not in the paper.
        causal: True; the mechanism has no other form.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Stick-breaking attention",
        summary="from the nearest key backwards, each key takes a share of what the nearer ones left",
        paper="Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
        authors="Tan et al.",
        year=2024,
        arxiv="2410.17980",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h matrices of stick-breaking weights; rows sum to less than one",
        use_case="causal language models without positional encodings",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="multihead",
        weights="non-negative",
        always_causal=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        attend_current: bool = False,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, **factory)
        self.attend_current = attend_current

    def attention_pattern(self, length: int) -> Mask | None:
        """All keys, or all but the token's own."""
        return None if self.attend_current else OTHER_TOKENS

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def scores(Q: Float[Tensor, "B H n d"], K: Float[Tensor, "B H m d"]) -> Float[Tensor, "B H n m"]:
            with full_precision(Q.device):  # errors of the scores would add up along the keys
                return scaled_dot_product(at_least_float32(Q), at_least_float32(K))

        def weights(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            return stick_breaking(scores, permitted).to(Q.dtype)

        lines: dict[str, Any] = {"is_scaled": True, "score_lines": dot_product, "weight_lines": weight_lines}
        return RowwiseMap(Q, K, mask, bias, weights, score_fn=scores, score_cost=2, **lines)


def stick_breaking(scores: Float[Tensor, "... M"], permitted: Tensor | None = None) -> Float[Tensor, "... M"]:
    """``β_j Π_{k > j} (1 - β_k)`` with β = σ(score) over the permitted keys, the last of which is the nearest.

    The product is ``exp(Σ_{k > j} log σ(-score_k))``, without the key itself, so that a saturated β does not cancel.
    A masked key has a score of -inf, for which β and log σ(-score) are exactly zero.
    """
    if permitted is not None:  # a minimum takes a tenth of the time of masked_fill
        scores = torch.minimum(scores, torch.where(permitted, torch.inf, -torch.inf).to(scores.dtype))
    scores = scores.flip(-1)  # the nearest key first
    log_left = F.logsigmoid(-scores).cumsum(-1).clamp(min=NOTHING_LEFT)  # after each key
    left = torch.exp(F.pad(log_left, (1, 0))[..., :-1])  # before each key
    return (torch.sigmoid(scores) * left).flip(-1)


def weight_lines(a: Arithmetic, row: Row) -> None:
    """Add the arithmetic from a score to its weight."""
    beta = sigmoid(a, "beta", row.score, "β: the share of what is left that this key takes")
    head, key = row.cell.head, row.cell.key
    nearer = row.scores[head, key + 1 :][row.allowed[head, key + 1 :]].double().clamp(-700, 700)
    if len(nearer) > MAX_LISTED:
        left = a.given("left", F.logsigmoid(-nearer).sum().exp(), f"what the {len(nearer)} nearer keys left")
    else:
        scores = a.given("nearer", nearer, "the scores of the keys between this one and the query")
        left = a.compute("left", f"math.prod(1 / (1 + math.exp(s)) for s in {scores})", "what they left: Π (1 - σ(s))")
    a.compute("weight", f"{beta} * {left}", "the attention weight")
