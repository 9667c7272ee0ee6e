"""Recurrences with a matrix state per head: what retention, the delta rule and their relatives share.

A mechanism subclasses `RecurrentBase` and implements `_recurrence`, which returns the inputs of its scan. It may also
override `_project`, where queries, keys and values do not come from one projection.

Axes: B batch, N tokens, D embed_dim, H heads, d width of a key, w width of a value.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.arguments import check_positive_int
from attnlab.nn.attention import make_linear
from attnlab.nn.cache import RecurrentState
from attnlab.nn.convolution import ShortConvolution
from attnlab.nn.multihead import MultiHeadBase, rms_norm
from attnlab.nn.projections import LowRank
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan.linear import linear_scan
from attnlab.ops.scan.scan_map import RecurrenceMap
from attnlab.ops.scan.sequences import Recurrence, Sequences
from attnlab.positions import Positions, parse_positions

EPS = 2**-17
"""Keeps the norm of a zero vector finite; about 1e-5, and exact in float32, in which ONNX stores it."""

GateKind = Literal["none", "sigmoid", "swish"]

States = tuple[Tensor, ...]
"""What a step needs of earlier tokens besides the matrix state: the last tokens of convolutions, and how many tokens
each row has (padding is not counted), for the positions."""


class RecurrentBase(MultiHeadBase):
    """``concat(head_1, ..., head_H) W_O``, where head_t = S_tᵀ q_t reads a state that every token updates.

    The state of a head is a matrix (d, w) in float32 (float64 for float64 inputs). The layer is always causal.

    Args:
        embed_dim: D, the width of a token, in and out.
        num_heads: H, the number of heads, each with its own values and state.
        num_groups: the number of queries and keys, each shared by a group of heads; ``num_heads`` by default.
        head_dim: the width of a head; ``embed_dim / num_heads`` by default.
        key_dim: d; ``head_dim`` by default.
        value_dim: w; ``head_dim`` by default.
        short_conv: the number of tokens of a causal convolution over queries, keys and values; 0 for none.
        conv_bias: whether the convolution has a bias.
        output_norm: whether the output of each head is divided by its root mean square, with learned gains.
        output_gate: the activation of a gate by which each feature of the heads is multiplied; ``none`` for no gate.
        gate_rank: the rank of the gate's projection, which is then a product of two; None for a full projection.
        positions: ``none``, or rotary positions (see `attnlab.positions`) of queries and keys; padding has none.
        causal: must be True.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        UnsupportedError: for ``causal=False``.
        ValueError: for an unknown gate, a width below 1, positions that are a bias of the scores, and what
            `MultiHeadBase` refuses.
    """

    cache_type = RecurrentState
    supports_packing = False
    values_depend_on_mask: ClassVar[bool] = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_groups: int | None = None,
        head_dim: int | None = None,
        key_dim: int | None = None,
        value_dim: int | None = None,
        short_conv: int = 0,
        conv_bias: bool = False,
        output_norm: bool = True,
        output_gate: GateKind = "none",
        gate_rank: int | None = None,
        positions: str | Positions = "none",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, width in {"key_dim": key_dim, "value_dim": value_dim}.items():
            if width is not None:
                check_positive_int(name, width)
        if head_dim is None and key_dim is not None:
            head_dim = value_dim  # which need not divide embed_dim
        self._widths = key_dim, value_dim  # read by qkv_sizes in the constructor of the base
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads=num_groups,
            head_dim=head_dim,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        if output_gate not in get_args(GateKind):
            raise ValueError(f"output_gate must be one of {', '.join(get_args(GateKind))}, not {output_gate!r}")
        if isinstance(short_conv, bool) or not isinstance(short_conv, int) or short_conv < 0:
            raise ValueError(f"short_conv must be 0, for none, or a number of tokens, not {short_conv!r}")
        self.positions = parse_positions(positions, num_heads=num_heads, head_dim=self.key_dim, causal=True)
        if self.positions.name not in ("none", "rotary"):
            raise ValueError(
                f"positions={self.positions.name} is a bias of softmax scores, which a recurrence does not have; "
                "use rotary or none"
            )
        self.output_gate = output_gate
        self.conv = ShortConvolution(sum(self.qkv_sizes), short_conv, bias=conv_bias, **factory) if short_conv else None
        self.norm = nn.RMSNorm(self.value_dim, eps=EPS, **factory) if output_norm else None
        self.gate: nn.Linear | LowRank | None = None
        if output_gate != "none" and gate_rank is None:
            self.gate = make_linear(embed_dim, self.merged_size, bias=bias, **factory)
        elif output_gate != "none":
            rank = check_positive_int("gate_rank", gate_rank)  # type: ignore[arg-type]
            self.gate = LowRank(embed_dim, rank, self.merged_size, bias=bias, **factory)

    @property
    def key_dim(self) -> int:
        """d, the width of queries and keys."""
        return self.head_dim if self._widths[0] is None else self._widths[0]

    @property
    def value_dim(self) -> int:
        """w, the width of values."""
        return self.head_dim if self._widths[1] is None else self._widths[1]

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """The features of ``qkv`` for queries, keys and values."""
        shared = self.num_kv_heads * self.key_dim
        return shared, shared, self.num_heads * self.value_dim

    @property
    def merged_size(self) -> int:
        """The features of the concatenated heads."""
        return self.num_heads * self.value_dim

    # The steps, in order

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,  # not supported
        context: Tensor | None = None,  # not supported
        cache: RecurrentState | None = None,  # type: ignore[override]
    ) -> Float[Tensor, "B N D"]:
        sequences = Sequences(mask, x.shape[1], cached=cache is not None)
        state, *states = (None,) if cache is None or not cache.state else cache.state
        inputs, kept = self._project(sequences.arrange(x), sequences, tuple(states))
        q, k, v, log_decay, beta, a, b, skip, *_ = sequences.masked(inputs)
        heads, state = linear_scan(q, k, v, log_decay=log_decay, beta=beta, a=a, b=b, state=state)
        if skip is not None:
            heads = heads + (skip.unsqueeze(-1) if skip.dim() == 1 else skip).unsqueeze(-1) * v
        if cache is not None:
            cache.replace(x.shape[1], state, *kept)
        heads = sequences.restore(self._finish_heads(heads, inputs), 2)
        return sequences.zero_padding(self._merge_heads(heads, x, self.dropout if self.training else 0.0))

    def _project(
        self, x: Float[Tensor, "B N D"], sequences: Sequences, states: States = ()
    ) -> tuple[Recurrence, States]:
        """Return the inputs of the scan, and the other states after the last token.

        Args:
            x: the tokens, in the order of ``sequences``.
            sequences: the documents and the padding of the rows.
            states: those after the previous call; empty at the start.
        """
        qkv, before, kept = self.qkv(x), list(states), []
        if self.conv is not None:
            qkv, last = self.conv(qkv, sequences, before.pop(0) if before else None)
            kept.append(last)
        widths = self.key_dim, self.key_dim, self.value_dim
        Q, K, V = (
            part.unflatten(-1, (-1, width)).transpose(1, 2)
            for part, width in zip(qkv.split(self.qkv_sizes, -1), widths, strict=True)
        )
        if self.positions.name != "none":
            seen = before.pop(0) if before else torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            first = seen[:, None] if states else 0
            Q, K = (self.positions.apply_rotary(at_least_float32(t), first) for t in (Q, K))
            count = sequences.last()
            kept.append(seen + (x.shape[1] if count is None else count))
        if (size := self.num_heads // self.num_kv_heads) > 1:
            Q, K = Q.repeat_interleave(size, 1), K.repeat_interleave(size, 1)
        return self._recurrence(x, Q, K, V), tuple(kept)

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        """Return the inputs of the scan for projected (and convolved) queries, keys and values."""
        raise NotImplementedError(f"{type(self).__name__} has no _recurrence")

    def _finish_heads(self, heads: Float[Tensor, "B H N w"], inputs: Recurrence) -> Float[Tensor, "B H N w"]:
        """Return the heads as `_merge_heads` gets them; both are in the order of `Sequences` here."""
        return heads

    def _merge_heads(
        self, heads: Float[Tensor, "B H N w"], x: Float[Tensor, "B N D"], dropout: float = 0.0
    ) -> Float[Tensor, "B N D"]:
        """Return the normalized, gated and concatenated heads times W_O; dropout comes after the norm."""
        if self.norm is not None:
            heads = rms_norm(heads, self.norm)
        merged = heads.transpose(1, 2).flatten(2)
        if self.gate is not None:
            gate = self.gate(x)
            merged = merged * (F.silu(gate) if self.output_gate == "swish" else gate.sigmoid())
        return self.output(F.dropout(merged, dropout))

    # Fewer heads

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        """Keep these heads, in place; a subclass with parameters per head extends it."""
        shared, values = head_channels(groups, self.key_dim), head_channels(heads, self.value_dim)
        first_key, first_value = self.qkv_sizes[0], sum(self.qkv_sizes[:2])
        parts = [*shared, *(first_key + i for i in shared), *(first_value + i for i in values)]
        select_features(self.qkv, rows=parts)
        select_features(self.output, columns=values)
        if self.conv is not None:
            self.conv.select(parts)
        if self.gate is not None:
            select_features(self.gate.up if isinstance(self.gate, LowRank) else self.gate, rows=values)
        self.num_heads, self.num_kv_heads = len(heads), len(groups)

    # The matrix that the recurrence applies to its values

    def _build_map(  # type: ignore[override]
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None
    ) -> RecurrenceMap:
        sequences = Sequences(mask, x.shape[1])
        inputs, _ = self._project(sequences.arrange(x), sequences)
        return RecurrenceMap(sequences.masked(inputs), sequences)

    def _apply_weights(  # type: ignore[override]
        self, weights: Float[Tensor, "B H N N"], x: Float[Tensor, "B N D"], mask: BoundMask | None = None
    ) -> Float[Tensor, "B N D"]:
        sequences = Sequences(mask, x.shape[1])
        inputs, _ = self._project(sequences.arrange(x), sequences)
        heads = sequences.arrange(weights @ sequences.restore(inputs.v, 2).to(weights.dtype), 2)
        heads = sequences.restore(self._finish_heads(heads, inputs), 2)
        return sequences.zero_padding(self._merge_heads(heads, x))

    def _values(  # type: ignore[override]
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None = None
    ) -> Float[Tensor, "B H N w"]:
        sequences = Sequences(mask, x.shape[1])
        return sequences.restore(self._project(sequences.arrange(x), sequences)[0].v, 2)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        widths = "" if self._widths == (None, None) else f", key_dim={self.key_dim}, value_dim={self.value_dim}"
        return f"{super().extra_repr()}{widths}, output_gate={self.output_gate}"
