"""Mamba-2: a state space model whose decay and step size depend on the token, computed as masked attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.nn.arguments import check_positive_int
from attnlab.nn.attention import Card, UnsupportedError, make_linear
from attnlab.nn.decay import SelectiveDecay
from attnlab.nn.multihead import rms_norm
from attnlab.nn.recurrent import EPS, RecurrentBase
from attnlab.ops.scan import Recurrence


class Mamba2(RecurrentBase):
    """``S_t = α_t S_{t-1} + Δ_t B_t x_tᵀ``, ``y_t = S_tᵀ C_t + D x_t``, output ``norm(y · silu(z)) W_O``.

    ``C``, ``B`` and ``x`` take the places of queries, keys and values; they pass a short convolution and SiLU. The step
    size ``Δ_t = softplus(u_t W_Δ + dt)`` of the token ``u_t`` and the decay ``α_t = exp(-exp(A) Δ_t)`` are one number
    per head and token. ``A``, ``dt`` and ``D`` are one parameter per head.

    Source: Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
    Space Duality", sections 6 and 7.

    Args:
        embed_dim: the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide ``expand * embed_dim``.
        num_groups: the number of different B and C, each shared by num_heads / num_groups heads.
        state_size: s, the width of B and C: a head keeps s numbers per feature.
        expand: the width of x and z, as a multiple of embed_dim.
        short_conv: the number of tokens of the convolution over C, B and x; 0 for none.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for sizes that do not divide each other, and what `RecurrentBase` refuses.
    """

    card = Card(
        title="Mamba-2",
        summary="each token sets how fast the state decays and how much is written; heads share queries and keys",
        paper="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space "
        "Duality",
        authors="Dao & Gu",
        year=2024,
        arxiv="2405.21060",
        kind="another operator",
        heads="h",
        time="n·d·s + n·d²",
        memory="n·d",
        representation="h lower triangular matrices, products of scores shared by all heads and decays per head",
        use_case="long sequences; decoding with constant memory",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="linear",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_groups: int = 1,
        state_size: int = 64,
        expand: int = 2,
        short_conv: int = 4,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = check_positive_int("expand", expand) * check_positive_int("embed_dim", embed_dim)
        if width % check_positive_int("num_heads", num_heads):
            raise ValueError(
                f"num_heads ({num_heads}) must divide expand * embed_dim ({width}); choose another num_heads or expand"
            )
        super().__init__(
            embed_dim,
            num_heads,
            num_groups=num_groups,
            head_dim=width // num_heads,
            key_dim=check_positive_int("state_size", state_size),
            short_conv=short_conv,
            conv_bias=True,
            output_norm=False,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.state_size = state_size
        self.z = make_linear(embed_dim, width, bias=bias, **factory)
        self.step = make_linear(embed_dim, num_heads, bias=False, **factory)  # Δ
        self.decay = SelectiveDecay(num_heads, smallest_rate=1.0, **factory)  # A, and the offset of Δ
        self.skip = nn.Parameter(torch.ones(num_heads, **factory))  # D
        self.inner_norm = nn.RMSNorm(width, eps=EPS, **factory)

    def reset_parameters(self) -> None:
        """Initialize all parameters again, the skip to ones."""
        super().reset_parameters()
        nn.init.ones_(self.skip)

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        C, B, V = F.silu(Q), F.silu(K), F.silu(V)
        log_decay, step = (part.transpose(1, 2) for part in self.decay(self.step(x)))
        return Recurrence(C, B * step.unsqueeze(-1), V, log_decay=log_decay, skip=self.skip)

    def _merge_heads(
        self, heads: Float[Tensor, "B H N w"], x: Float[Tensor, "B N D"], dropout: float = 0.0
    ) -> Float[Tensor, "B N D"]:
        merged = heads.transpose(1, 2).flatten(2) * F.silu(self.z(x))
        return self.output(F.dropout(rms_norm(merged, self.inner_norm), dropout))

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        raise UnsupportedError("Mamba2 normalizes all heads together; a copy without some of them would differ")
