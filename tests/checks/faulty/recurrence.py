"""Errors of a mixer that is not softmax attention: a recurrence with padding, segments and a recurrent state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from plain import Plain, fails
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.cache import RecurrentState
from attnlab.nn.mixer import SequenceMixer


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the state: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def current_keys(mask: BoundMask, x: Tensor) -> Tensor:
    """The mask for the tokens of this call, (B, N, N); with a cache the first keys belong to earlier calls."""
    return mask.tensor().any(1)[..., mask.keys - x.shape[1] :]


class MovingAverage(SequenceMixer):
    """An exponential moving average of the values, one decay per channel; always causal."""

    supports = ("causal", "padding", "segments", "cache")
    card = replace(Plain.card, kind="another operator", heads="1", memory="n²·d", supports=supports)
    cache_type = RecurrentState

    def __init__(
        self, embed_dim: int, *, causal: bool = False, dropout: float = 0.0, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(embed_dim, causal=causal, dropout=dropout)
        options = {"device": device, "dtype": dtype}
        self.value, self.output = (nn.Linear(embed_dim, embed_dim, **options) for _ in range(2))
        self.decay = nn.Linear(embed_dim, embed_dim, **options)

    def inputs(self, x: Tensor, mask: BoundMask | None) -> tuple[Tensor, Tensor]:
        """The values and the log decays, both zero for padding."""
        values, log_decay = self.value(x), nn.functional.logsigmoid(self.decay(x).double())
        if mask is None:
            return values, log_decay
        real = current_keys(mask, x).any(1)[..., None]
        return values.masked_fill(~real, 0.0), log_decay.masked_fill(~real, 0.0)

    def allowed(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        """Boolean, broadcastable to (B, N, N, 1): the earlier tokens of the same segment."""
        past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return (past[None] if mask is None else past & current_keys(mask, x))[..., None]

    def _forward(self, x: Tensor, mask: BoundMask | None, cache: RecurrentState | None = None) -> Tensor:
        values, log_decay = self.inputs(x, mask)
        total = log_decay.cumsum(1)
        decay = (total[:, :, None] - total[:, None]).masked_fill(~self.allowed(x, mask), -torch.inf).exp()
        state = torch.einsum("bijd,bjd->bid", decay, values.double())
        if cache is not None:
            before = cache.state[0] if cache.state else torch.zeros_like(state[:, 0])
            state = state + total.exp() * before[:, None]
            cache.replace(x.shape[1], (state[:, -1] if x.shape[1] else before).to(state_dtype(x)))
        return self.output(nn.functional.dropout(state.to(x.dtype), self.dropout, self.training))


@fails("no_padding_leakage", "left_padding_invariance", replaces="_forward", base=MovingAverage)
def adds_padding_to_the_state(self: MovingAverage, x: Tensor, mask: BoundMask | None, **options: Any) -> Tensor:
    return MovingAverage._forward(self, x, None, **options)


@fails("packed_sequences_are_independent", "no_future_leakage_with_mask", replaces="allowed", base=MovingAverage)
def keeps_the_state_across_segments(self: MovingAverage, x: Tensor, mask: BoundMask | None) -> Tensor:
    return MovingAverage.allowed(self, x, None)


@fails("cache_matches_full_pass", replaces="_forward", base=MovingAverage)
def starts_every_cached_step_from_zero(
    self: MovingAverage, x: Tensor, mask: BoundMask | None, cache: RecurrentState | None = None
) -> Tensor:
    if cache is not None:
        cache.replace(x.shape[1], torch.zeros(len(x), x.shape[2], dtype=state_dtype(x), device=x.device))
    return MovingAverage._forward(self, x, mask)


@fails("low_precision_accuracy", replaces="inputs", base=MovingAverage)
def accumulates_decays_in_low_precision(
    self: MovingAverage, x: Tensor, mask: BoundMask | None
) -> tuple[Tensor, Tensor]:
    values, log_decay = MovingAverage.inputs(self, x, mask)
    total = log_decay.to(x.dtype).cumsum(1)
    return values, total.diff(dim=1, prepend=torch.zeros_like(total[:, :1])).to(log_decay.dtype)
