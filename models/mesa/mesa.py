"""MesaNet: each query reads the linear map that fits the earlier keys and values best, a regression per token."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.nn.arguments import check_positive_int
from attnlab.nn.attention import Card, make_linear
from attnlab.nn.decay import SelectiveDecay
from attnlab.nn.recurrent import RecurrentBase, States
from attnlab.nn.select import select_channels, select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence, Sequences, linear_scan
from attnlab.ops.scan.functions import l2_norm

SMALLEST_RIDGE = 0.25


class MesaNet(RecurrentBase):
    """``o_t = G_tᵀ (H_t + Λ)⁻¹ q_t``, ``H_t = γ_t H_{t-1} + β_t k_t k_tᵀ``, ``G_t = γ_t G_{t-1} + β_t k_t v_tᵀ``.

    ``W_t = G_tᵀ (H_t + Λ)⁻¹`` minimizes ``Σ_s ζ_ts |W k_s - v_s|² + tr(W Λ Wᵀ)``, where ``ζ_ts = β_s γ_{s+1} ... γ_t``.
    ``γ`` and ``β`` are the decay and the weight of a token, between 0 and 1; the diagonal matrix ``Λ`` is a parameter.
    The system of each token is solved by conjugate gradients, whose products with ``H_t`` are scans. The solution
    is exact, up to rounding, after d steps, where d is the width of a head.

    Source: von Oswald et al. 2025, "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", sections 2, 3.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        iterations: i, the number of steps of the conjugate gradient method.
        short_conv: the number of tokens of the convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of the output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for fewer than one iteration, and what `RecurrentBase` refuses.
    """

    card = Card(
        title="MesaNet",
        summary="each query reads the linear map that fits the earlier keys and values best, solved at every token",
        paper="MesaNet: Sequence Modeling by Locally Optimal Test-Time Training",
        authors="von Oswald et al.",
        year=2025,
        arxiv="2506.05233",
        kind="another operator",
        heads="h",
        time="i·n·d²/h + n·d²",
        memory="i·n·d",
        representation="h lower triangular matrices, products of solved queries and keys",
        use_case="recall from a state of constant size, where computing time matters less",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="deltanet",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        iterations: int = 15,
        short_conv: int = 4,
        output_norm: bool = True,
        output_gate: Literal["none", "sigmoid", "swish"] = "none",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim,
            num_heads,
            short_conv=short_conv,
            output_norm=output_norm,
            output_gate=output_gate,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.iterations = check_positive_int("iterations", iterations)
        self.step = make_linear(embed_dim, num_heads, bias=False, **factory)  # of γ
        self.decay = SelectiveDecay(num_heads, **factory)
        self.strength = make_linear(embed_dim, num_heads, bias=False, **factory)  # of β
        self.ridge = nn.Parameter(torch.empty(num_heads, self.key_dim, **factory))  # of Λ
        self._reset_ridge()

    def reset_parameters(self) -> None:
        """Initialize all parameters again, Λ to the identity."""
        super().reset_parameters()
        self._reset_ridge()

    def _reset_ridge(self) -> None:
        nn.init.constant_(self.ridge, math.log(math.expm1(1 - SMALLEST_RIDGE)))

    def regularization(self) -> Float[Tensor, "H d"]:
        """Return the diagonal of Λ, at least 0.25."""
        return SMALLEST_RIDGE - F.logsigmoid(-at_least_float32(self.ridge))

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        """Return the recurrence of ``G``; the keys hold β, which the values do not depend on."""
        Q, K, V = F.silu(Q), F.silu(K), F.silu(V)
        q, k = l2_norm(at_least_float32(Q)), l2_norm(at_least_float32(K))
        log_decay = self.decay(self.step(x))[0].transpose(1, 2)
        return Recurrence(q, k, V, log_decay=log_decay, beta=self.strength(x).sigmoid().transpose(1, 2))

    def _project(
        self, x: Float[Tensor, "B N D"], sequences: Sequences, states: States = ()
    ) -> tuple[Recurrence, States]:
        """Replace the queries by the solutions of the regressions; the first of the states is H."""
        inputs, kept = super()._project(x, sequences, states[1:])
        q, k, v, log_decay, beta, *_ = sequences.masked(inputs)
        assert beta is not None
        written = k * at_least_float32(beta).unsqueeze(-1)
        ridge = self.regularization()[:, None]  # (H, 1, d)
        state = states[0] if states else None

        def product(p: Tensor) -> tuple[Tensor, Tensor]:
            """``(H_t + Λ) p_t`` for every token, and H after the last."""
            out, last = linear_scan(p, written, k, log_decay=log_decay, state=state)
            return out + ridge * p, last

        q, H = _conjugate_gradients(product, q, self.iterations)
        return Recurrence(q, written, v, log_decay=log_decay), (H, *kept)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        for part in (self.step, self.strength):
            select_features(part, rows=heads)
        self.decay.select(heads)
        self.ridge = select_channels(self.ridge, heads)


def _conjugate_gradients(product: Any, target: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Solve ``product(x) = target`` for symmetric positive matrices; also return the state of the last product.

    A system whose residual is zero, up to rounding, is solved: its further steps are zero.
    """
    x, r, p = torch.zeros_like(target), target, target
    size = (r * r).sum(-1, keepdim=True)
    kind = torch.finfo(target.dtype)
    smallest = (size.detach() * kind.eps**2).clamp_min(kind.tiny**0.5)  # below, a quotient's gradient could overflow
    for _ in range(iterations):
        Ap, state = product(p)
        unsolved = size > smallest
        step = torch.where(unsolved, size / torch.where(unsolved, (p * Ap).sum(-1, keepdim=True), 1.0), 0.0)
        x, r = x + step * p, r - step * Ap
        before, size = torch.where(unsolved, size, 1.0), (r * r).sum(-1, keepdim=True)
        p = r + size / before * p
    return x, state
