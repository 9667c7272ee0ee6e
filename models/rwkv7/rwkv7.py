"""RWKV-7: a delta rule in which decay, removal and replacement each have their own vector."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.nn.attention import Card, check_positive_int, make_linear
from attnlab.nn.convolution import earlier_tokens
from attnlab.nn.multihead import HeadNorm
from attnlab.nn.projections import LowRank
from attnlab.nn.recurrent import EPS, RecurrentBase, States
from attnlab.nn.select import head_channels, select_channels, select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence
from attnlab.ops.scan.functions import l2_norm
from attnlab.ops.scan.sequences import Sequences

LARGEST_RATE = 0.6065306663513184
"""exp(-1/2), rounded to float32, in which ONNX stores it."""

SHIFTS = {"receptance": 0.2, "key": 0.7, "value": 0.7, "decay": 0.9, "rate": 0.9, "gate": 0.2}
"""The inputs that a token computes, and the exponent p of the initial part of the previous token, 1 - (i / D)^p."""


class RWKV7(RecurrentBase):
    """``S_t = (Diag(w_t) - (a_t ⊙ κ̂_t) κ̂_tᵀ) S_{t-1} + k̃_t v_tᵀ``, ``o_t = S_tᵀ r_t``.

    Each of ``r, k, v, w, a, g`` is computed from its own mixture of the token and the previous one,
    ``x_t + μ ⊙ (x_{t-1} - x_t)``:

    - ``r, k, v``: projections (receptance, key, value);
    - ``w = exp(-e^{-1/2} sigmoid(d))`` with ``d = b + tanh(x W_1) W_2``, the decay of each channel;
    - ``a = sigmoid(b + x W_1 W_2)``, the in-context learning rate of each channel;
    - ``κ = ξ ⊙ k``, and ``κ̂ = κ / |κ|``, the removal key; ``k̃ = k ⊙ (1 + α (a - 1))``, the replacement key;
    - ``g = sigmoid(x W_1) W_2``, the gate.

    The layer returns ``(g ⊙ (norm(o) + (r · (ρ ⊙ k̃)) v)) W_O``, where the norm is per head. The paper writes the
    transpose of ``S``. The value residual of the paper, which mixes in the values of the first layer, is left out: a
    layer does not know them. In the first layer of a network there is none.

    Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4 and appendix.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        rank: the width between W_1 and W_2 of decay and learning rate, and half of that of the gate;
            embed_dim / num_heads by default.
        output_norm: whether the output of each head is normalized.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections to r, k, v and of the output have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a rank below 1, and what `RecurrentBase` refuses.
    """

    card = Card(
        title="RWKV-7",
        summary="a decay and a learning rate per channel; removal and replacement of a value use different keys",
        paper="RWKV-7 Goose with Expressive Dynamic State Evolution",
        authors="Peng et al.",
        year=2025,
        arxiv="2503.14456",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h lower triangular matrices; entries may be negative",
        use_case="networks without any attention; decoding with constant memory; tracking a state",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="gateddeltanet",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    fuses_qkv: ClassVar[bool] = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        rank: int | None = None,
        output_norm: bool = True,
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, num_heads, output_norm=False, causal=causal, dropout=dropout, bias=bias, **factory)
        width = self.head_dim if rank is None else check_positive_int("rank", rank)
        self.receptance = make_linear(embed_dim, embed_dim, bias=bias, **factory)  # W_r
        self.key = make_linear(embed_dim, embed_dim, bias=bias, **factory)  # W_k
        self.value = make_linear(embed_dim, embed_dim, bias=bias, **factory)  # W_v
        self.decay = LowRank(embed_dim, width, embed_dim, activation=torch.tanh, bias=True, **factory)
        self.rate = LowRank(embed_dim, width, embed_dim, bias=True, **factory)
        self.head_gate = LowRank(embed_dim, 2 * width, embed_dim, activation=torch.sigmoid, **factory)
        eps = EPS * self.head_dim  # 64e-5 in heads of 64 channels
        self.head_norm = HeadNorm(num_heads, self.head_dim, eps=eps, **factory) if output_norm else None
        self.shift = nn.Parameter(torch.empty(len(SHIFTS), embed_dim, **factory))  # μ
        self.removal = nn.Parameter(torch.empty(embed_dim, **factory))  # ξ
        self.replacement = nn.Parameter(torch.empty(embed_dim, **factory))  # α
        self.bonus = nn.Parameter(torch.empty(embed_dim, **factory))  # ρ
        self._reset_vectors()

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        super().reset_parameters()
        self._reset_vectors()

    @torch.no_grad()
    def _reset_vectors(self) -> None:
        """Set the vectors as the authors do in the first layer; decays and rates start independent of the token."""
        D, d = self.embed_dim, self.head_dim
        place = torch.linspace(0, 1, D, device=self.shift.device)
        within = torch.linspace(-1, 1, d, device=self.shift.device)
        within = (within * within.abs()).repeat(self.num_heads)
        exponents = torch.tensor(list(SHIFTS.values()), device=self.shift.device)
        self.shift.copy_(1 - (torch.arange(D, device=self.shift.device) / D) ** exponents[:, None])
        self.decay.up.bias.copy_(6 * place - 5.5 + 2.5 * within)
        self.rate.up.bias.copy_(0.4 * place - 0.39 + 0.3 * within)
        self.removal.copy_(0.76 - 0.1 * place)
        self.replacement.fill_(1.02)
        self.bonus.fill_(-0.04)
        for part in (self.decay, self.rate):
            part.down.weight.zero_()

    def _project(
        self, x: Float[Tensor, "B N D"], sequences: Sequences, states: States = ()
    ) -> tuple[Recurrence, States]:
        (previous,), kept = earlier_tokens(x, 1, sequences, states[0] if states else None)
        change = previous - x
        x_r, x_k, x_v, x_w, x_a, x_g = (torch.addcmul(x, change, part) for part in self.shift.to(x.dtype).unbind(0))
        r, k, v, g = map(self._split, (self.receptance(x_r), self.key(x_k), self.value(x_v), self.head_gate(x_g)))
        w = self._split(at_least_float32(self.decay(x_w)).sigmoid() * -LARGEST_RATE)  # log w
        a = self._split(at_least_float32(self.rate(x_a)).sigmoid())
        k = at_least_float32(k)
        removed = l2_norm(k * self._per_head(self.removal))  # κ̂
        k = k * (1 + (a - 1) * self._per_head(self.replacement))  # k̃
        bonus = (r * k * self._per_head(self.bonus)).sum(-1)
        recurrence = Recurrence(r, k, v, log_decay=w, a=-removed, b=removed * a, bonus=bonus, gate=g)
        return recurrence, (kept,)

    def _split(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _per_head(self, vector: Float[Tensor, " D"]) -> Float[Tensor, "H 1 d"]:
        return vector.unflatten(0, (self.num_heads, 1, -1))

    def _finish_heads(self, heads: Float[Tensor, "B H N d"], inputs: Recurrence) -> Float[Tensor, "B H N d"]:
        assert inputs.bonus is not None
        assert inputs.gate is not None
        added = inputs.bonus.unsqueeze(-1) * inputs.v
        normalized = heads if self.head_norm is None else self.head_norm(heads)
        return ((normalized + added) * inputs.gate).to(heads.dtype)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        channels = head_channels(heads, self.head_dim)
        for part in (self.receptance, self.key, self.value, self.decay.up, self.rate.up, self.head_gate.up):
            select_features(part, rows=channels)
        select_features(self.output, columns=channels)
        for name in ("removal", "replacement", "bonus"):
            setattr(self, name, select_channels(getattr(self, name), channels))
        if self.head_norm is not None:
            self.head_norm.keep_heads(heads)
        self.num_heads = self.num_kv_heads = len(heads)
