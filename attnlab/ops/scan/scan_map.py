"""The attention matrix of a recurrence: the matrix that it applies to its values.

Axes: B batch, H heads, N steps, d width of a key, w width of a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.scan.linear import linear_scan
from attnlab.ops.scan.sequences import Recurrence, Sequences
from attnlab.ops.scan.states import HeadSteps, StateTrace

MAX_STEPS = 32
"""The largest number of steps of a path whose arithmetic is shown one by one."""


class ScanMap(AttentionMap):
    """The attention matrix of `linear_scan`, never materialized; takes what that takes, without the values.

    Its weights may be negative, and need not sum to one.
    """

    implied = True

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        *,
        log_decay: Tensor | None = None,
        beta: Tensor | None = None,
        a: Tensor | None = None,
        b: Tensor | None = None,
    ) -> None:
        B, H, N, _ = q.shape
        super().__init__((B, H, N, N), q)
        self.q, self.k = q, k
        self._gates: dict[str, Any] = {"log_decay": log_decay, "beta": beta, "a": a, "b": b}

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        if dropout:
            raise ValueError(f"a recurrence has no attention weights to drop; dropout must be 0, not {dropout}")
        values = values.expand(*self.q.shape[:2], -1, -1)
        return linear_scan(self.q, self.k, values, **self._gates)[0]

    def states(self, values: Tensor, head: int, batch: int = 0) -> StateTrace:
        """Return the state of a head after each token, for the values (B, H, N, w), in float64."""
        return self._head(batch, head).trace(values[batch, head].detach().double())

    def _head(self, batch: int, head: int) -> HeadSteps:
        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[batch, head].detach().double()

        q, k, log_decay = self.q[batch, head].detach().double(), self.k[batch, head].detach().double(), None
        a = part(self._gates["a"])
        if self._gates["log_decay"] is not None:
            log_decay = self._gates["log_decay"].detach().double()
            log_decay = log_decay[head].expand(len(q)) if log_decay.dim() == 1 else log_decay[batch, head]
            log_decay = log_decay.unsqueeze(-1) if log_decay.dim() == 1 else log_decay
            a = a if a is None else a.masked_fill(log_decay == -torch.inf, 0.0)  # a cleared channel is not read
        decay = None if log_decay is None else log_decay.exp()
        return HeadSteps(q, k, decay, part(self._gates["beta"]), a, part(self._gates["b"]))

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        self.explain_path(a, cell, range(self.shape[2]))

    def explain_path(self, a: Arithmetic, cell: Cell, tokens: Sequence[int]) -> None:
        """Add the lines of the weight between two steps; ``tokens`` holds the token of each step."""
        i, j, head = cell.query, cell.key, self._head(cell.batch, cell.head)
        if j > i:
            a.given("weight", 0.0, "causal: this token writes to the state only after the query has read it")
            return
        if head.is_corrected:
            vector = self._explain_corrected(a, head, i, j, tokens)
        else:
            vector = self._explain_decay(a, head, i, j)
        q = a.given("q", head.q[i], "the query, which reads the state")
        products = a.compute("products", f"[x * y for x, y in zip({q}, {vector})]", "the products of their features")
        a.compute("weight", f"sum({products})", "the implied weight: the query times what the state holds of the token")

    def _explain_decay(self, a: Arithmetic, head: HeadSteps, i: int, j: int) -> str:
        k = a.given("k", head.k[j], "the key: what the token writes to the state per unit of its value")
        if head.decay is None or i == j:
            return k
        decay, steps = head.decay[j + 1 : i + 1], i - j
        if decay.shape[-1] > 1:
            kept = a.given("decay", decay.prod(0), f"the product of the decays of the next {steps} tokens, per channel")
            return a.compute("kept", f"[x * y for x, y in zip({k}, {kept})]", "what is left of it at the query")
        if steps > MAX_STEPS:
            kept = a.given("decay", decay.prod(), f"the product of the decays of the next {steps} tokens")
        else:
            decays = a.given("decays", decay[:, 0], "the decays of the tokens after it, up to the query")
            kept = a.compute("decay", f"math.prod({decays})", "their product")
        return a.compute("kept", f"[x * {kept} for x in {k}]", "what is left of it at the query")

    def _explain_corrected(self, a: Arithmetic, head: HeadSteps, i: int, j: int, tokens: Sequence[int]) -> str:
        first = max(j, i - MAX_STEPS)
        if first > j:
            state = head.written(j).unsqueeze(-1)
            for t in range(j + 1, first + 1):
                state = head.transition(t, state)
            meaning = f"what token {tokens[j]} wrote, after the transitions of the {first - j} tokens that follow it"
            vector = a.given(f"u_{tokens[first]}", state[:, 0], meaning)
        else:
            k = a.given(f"key_{tokens[j]}", head.k[j], f"the key of token {tokens[j]}")
            factor = "" if head.beta is None else a.given(f"beta_{tokens[j]}", head.beta[j], "β: how much it writes")
            code, meaning = f"[{factor} * x for x in {k}]" if factor else k, "what it writes per unit of its value"
            vector = a.compute(f"u_{tokens[j]}", code, meaning)
        for t in range(first + 1, i + 1):
            vector = self._explain_step(a, head, t, str(tokens[t]), vector)
        return vector

    def _explain_step(self, a: Arithmetic, head: HeadSteps, t: int, token: str, before: str) -> str:
        """Add the lines of one transition of the vector named ``before``; return the name of the result."""
        vector = before
        if head.decay is not None:
            decay = head.decay[t] if head.decay.shape[-1] > 1 else head.decay[t, 0]
            factor = a.given(f"decay_{token}", decay, f"the decay of token {token}")
            code = f"x * y for x, y in zip({factor}, {vector})" if decay.dim() else f"{factor} * x for x in {vector}"
            vector = a.compute(f"decayed_{token}", f"[{code}]", "what the decay leaves")
        if head.beta is not None:
            k = a.given(f"key_{token}", head.k[t], f"the key of token {token}")
            beta = a.given(f"beta_{token}", head.beta[t], "β: how much of what its key reads is replaced")
            read = a.compute(f"read_{token}", f"sum(x * y for x, y in zip({k}, {vector}))", "what its key reads")
            code = f"[x - {beta} * {read} * y for x, y in zip({vector}, {k})]"
            return a.compute(f"u_{token}", code, "the rest, after the correction: x - β (k · x) k")
        assert head.a is not None
        assert head.b is not None
        reader = a.given(f"a_{token}", head.a[t], f"a of token {token}, which reads the state")
        writer = a.given(f"b_{token}", head.b[t], "b, which writes what a read")
        read = a.compute(f"read_{token}", f"sum(x * y for x, y in zip({reader}, {before}))", "what a reads")
        code = f"[x + {read} * y for x, y in zip({vector}, {writer})]"
        return a.compute(f"u_{token}", code, "the sum: diag(decay) x + (a · x) b")

    def _rows(self, rows: Tensor) -> Tensor:
        """Return these rows, computed from the steps up to the last of them."""
        N = self.shape[2]
        stop = int(rows.max()) + 1 if rows.numel() else 0
        gates = {n: x if x is None or x.dim() == 1 else x[:, :, :stop] for n, x in self._gates.items()}
        earlier = ScanMap(self.q[:, :, :stop], self.k[:, :, :stop], **gates)
        weights = super(ScanMap, earlier)._rows(rows)
        return torch.cat([weights, weights.new_zeros(*weights.shape[:-1], N - stop)], -1)


class RecurrenceMap(AttentionMap):
    """The attention matrix of a `Recurrence`, never materialized, in the order of the batch.

    Its weights may be negative, and need not sum to one. Rows and columns of padding are zero.

    Args:
        inputs: the recurrence, in the order of ``sequences`` and masked by it.
        sequences: the documents and the padding of the rows.
    """

    implied = True

    def __init__(self, inputs: Recurrence, sequences: Sequences) -> None:
        B, H, N, _ = inputs.q.shape
        super().__init__((B, H, N, N), inputs.q)
        q, k, _, log_decay, beta, a, b, self._skip, *_ = inputs
        self._scan, self._sequences = ScanMap(q, k, log_decay=log_decay, beta=beta, a=a, b=b), sequences

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        values = self._sequences.arrange(values.expand(*self.shape[:3], -1), 2)
        out = self._scan.apply(values, dropout=dropout)
        if self._skip is not None:
            out = out + (self._skip.unsqueeze(-1) if self._skip.dim() == 1 else self._skip).unsqueeze(-1) * values
        real = self._sequences.real
        if real is not None:
            out = out.masked_fill(~real[:, None, :, None], 0.0)
        return self._sequences.restore(out, 2)

    def states(self, values: Tensor, head: int, batch: int = 0) -> StateTrace:
        """Return the state of a head after each token, in the order of the batch; zeros for padding.

        Args:
            values: (B, H, N, w), in the order of the batch.
            head: the head.
            batch: the item of the batch.
        """
        trace = self._scan.states(self._sequences.arrange(values, 2), head, batch)
        steps = self._steps(batch)
        return trace.arranged([step if self._is_real(batch, step) else None for step in steps])

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        b, h, i, j = cell
        steps = self._steps(b)
        query, key = steps[i], steps[j]
        if not (self._is_real(b, query) and self._is_real(b, key)):
            a.given("weight", 0.0, "padding: it writes nothing, and nothing is read for it")
            return
        tokens = sorted(range(len(steps)), key=steps.__getitem__)
        self._scan.explain_path(a, cell._replace(query=query, key=key), tokens)
        if self._skip is not None and i == j:
            skip = self._skip[h] if self._skip.dim() == 1 else self._skip[b, h, query]
            read, skip_name = a.last, a.given("skip", skip, "D: the factor of the value in its own output")
            a.compute("with_skip", f"{read} + {skip_name}", "the implied weight with the skip connection")

    def _steps(self, batch: int) -> list[int]:
        """Return the step of the scan at which each token of this row is read."""
        B, N = self.shape[0], self.shape[2]
        steps = self._sequences.restore(torch.arange(N, device=self._like.device).expand(B, N))[batch]
        return [int(step) for step in steps]

    def _is_real(self, batch: int, step: int) -> bool:
        real = self._sequences.real
        return real is None or bool(real[batch if len(real) > 1 else 0, step])
