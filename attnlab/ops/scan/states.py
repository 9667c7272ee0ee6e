"""One head of a recurrence, step by step in float64: its transitions, what a token writes, and its states.

    S_t = T_t S_{t-1} + w_t v_tᵀ,  o_t = S_tᵀ q_t

The transition T_t is ``diag(decay_t)`` (the identity without a decay), ``(I - β_t k_t k_tᵀ) diag(decay_t)`` under the
delta rule, and ``diag(decay_t) + b_t a_tᵀ`` with ``a`` and ``b``. The token writes ``w_t = k_t``, and ``β_t k_t`` under
the delta rule.

Axes: N steps, d width of a key, w width of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RANK_THRESHOLD = 0.01
"""The smallest singular value that counts for the rank, relative to the largest."""


@dataclass
class StateTrace:
    """The state S_t of a head, (d, w), after each token. All norms are Frobenius norms.

    Args:
        norm: ``‖S_t‖``.
        rank: the number of singular values of S_t above 1 % of the largest.
        written: ``‖w_t v_tᵀ‖``, what the token adds.
        erased: ``‖S_{t-1} - T_t S_{t-1}‖``, how far the transition moves the state, by decay and corrections.
    """

    norm: list[float] = field(default_factory=list)
    rank: list[int] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    erased: list[float] = field(default_factory=list)

    def step(self, before: Tensor, kept: Tensor, update: Tensor) -> Tensor:
        """Add a token and return its state, from S_{t-1}, ``T_t S_{t-1}`` and ``w_t v_tᵀ``."""
        state = kept + update
        singular = torch.linalg.svdvals(state)
        self.norm.append(float(state.norm()))
        self.rank.append(int((singular > RANK_THRESHOLD * singular.max()).sum()) if singular.numel() else 0)
        self.written.append(float(update.norm()))
        self.erased.append(float((before - kept).norm()))
        return state

    def arranged(self, places: Sequence[int | None]) -> StateTrace:
        """Return the tokens at these places; None is a token without a state, all zeros."""
        return StateTrace(
            [0.0 if place is None else self.norm[place] for place in places],
            [0 if place is None else self.rank[place] for place in places],
            [0.0 if place is None else self.written[place] for place in places],
            [0.0 if place is None else self.erased[place] for place in places],
        )


@dataclass(frozen=True)
class HeadSteps:
    """The inputs of one head, in float64.

    Args:
        q: (N, d).
        k: (N, d).
        decay: (N, 1 | d), or None.
        beta: (N,), or None.
        a: (N, d), or None.
        b: (N, d), or None.
    """

    q: Tensor
    k: Tensor
    decay: Tensor | None
    beta: Tensor | None
    a: Tensor | None
    b: Tensor | None

    @property
    def is_corrected(self) -> bool:
        """Whether a step does more than decay."""
        return self.beta is not None or self.a is not None

    def written(self, t: int) -> Tensor:
        """Return w_t, (d,)."""
        return self.k[t] if self.beta is None else self.beta[t] * self.k[t]

    def transition(self, t: int, state: Tensor) -> Tensor:
        """Return ``T_t`` times the state, (d, w)."""
        k, after = self.k[t], state
        if self.decay is not None:
            after = self.decay[t].unsqueeze(-1) * after
        if self.beta is not None:
            after = after - self.beta[t] * torch.outer(k, k @ after)
        if self.a is not None and self.b is not None:
            after = after + torch.outer(self.b[t], self.a[t] @ state)
        return after

    def trace(self, values: Tensor) -> StateTrace:
        """Return the states for the values (N, w); one state at a time is kept."""
        trace, state = StateTrace(), self.k.new_zeros(self.k.shape[1], values.shape[1])
        for t, value in enumerate(values):
            state = trace.step(state, self.transition(t, state), torch.outer(self.written(t), value))
        return trace
