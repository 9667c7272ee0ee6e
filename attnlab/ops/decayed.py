"""Softmax attention whose scores decay with the gates between a query and a key, exact at any length.

A cumulative sum of log gates grows with the length, and so does its rounding error. Sums are therefore kept in float64,
and only their differences, which are small for the weights that matter, are rounded to the precision of the scores.

Axes: B batch, H heads, N queries, n rows at a time, M keys, m keys that these rows may attend to, d head_dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from attnlab.masks import BoundMask
from attnlab.masks.bound import Index, count, positions
from attnlab.ops.arithmetic import MAX_LISTED, Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.backends.tiles import by_tiles
from attnlab.ops.bias import Bias, cut, four_axes
from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.rowwise import RowwiseMap, at_least_float32, row_tiles
from attnlab.ops.softmax import masked_softmax
from attnlab.utils.tracing import full_precision, widest_dtype


class DecayedMap(AttentionMap):
    """``softmax(q kᵀ / √d + D + bias)`` with ``D_ij = Σ_{j < l ≤ i} gates_l`` over the allowed keys l.

    For a key after its query the sum is ``Σ_{i ≤ l < j} gates_l``. Float16 and bfloat16 are computed in float32, also
    under autocast.

    Source: Lin et al. 2025, "Forgetting Transformer", arXiv:2503.02130, section 3.1.

    Args:
        q: (B, H, N, d); the queries are aligned with the keys at the end.
        k: (B, H, M, d).
        gates: (B, H, M), logarithms of gates from 0 to 1, in at least float32.
        mask: which keys each query attends to.
        bias: added to the scores, broadcastable to (B, H, N, M).
    """

    def __init__(
        self, q: Tensor, k: Tensor, gates: Tensor, mask: BoundMask | None = None, bias: Bias | None = None
    ) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask = at_least_float32(q), at_least_float32(k), mask
        self.bias = None if bias is None else four_axes(bias)
        self.gates = gates.to(widest_dtype(q.device))
        self.sums = self.gates.cumsum(-1)
        # Then a sum over the allowed keys differs from that over all keys by the same value for all keys of a row.
        self.contiguous = mask is not None and mask.is_causal_and_contiguous

    @property
    def changes(self) -> frozenset[str]:
        """All options; the decays stay the same."""
        return self._by_rows().changes

    def _with_scores(self, options: ScoreOptions) -> AttentionMap:
        return self._by_rows()._with_scores(options)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        # A kernel gives no gradient to a matrix, and a functorch transform hides that one is needed. In forward mode
        # both the matrix and the zeros that carry its gradient would contribute.
        learned = self.bias is not None and self.bias.requires_grad and torch.is_grad_enabled()
        fused = self.contiguous and not dropout and not learned
        fused = fused and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
        fused = fused and forward_ad.unpack_dual(self.gates).tangent is None
        with full_precision(values.device):
            if fused:
                return self._fused(at_least_float32(values)).to(values.dtype)
            return self._by_rows().apply(at_least_float32(values), dropout=dropout).to(values.dtype)

    def _rows(self, rows: Tensor) -> Tensor:
        with full_precision(self.q.device):
            return self._by_rows()._rows(rows).to(self._like.dtype)

    def _by_rows(self) -> RowwiseMap:
        # The sums over allowed keys and their differences take 4 float64 values per score.
        return RowwiseMap(
            self.q,
            self.k,
            self.mask,
            self.bias,
            masked_softmax,
            added=self._decay,
            score_cost=8,
            added_lines=self._decay_lines,
        )

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        self._by_rows()._explain(a, cell)

    def _decay_lines(self, a: Arithmetic, cell: Cell) -> str:
        b, h, i, j = cell
        (B, H, N, M) = self.shape
        place = i + M - N
        between = torch.zeros(M, dtype=torch.bool, device=self.gates.device)
        between[j + 1 : place + 1] = between[place:j] = True  # one of the two is empty
        if not self.contiguous and self.mask is not None:
            between &= self.mask.tile(slice(i, i + 1), slice(0, M)).expand(B, H, 1, M)[b, h, 0]
        gates = self.gates[b, h, between]
        if len(gates) > MAX_LISTED:
            return a.given("decay", gates.sum(), f"the sum of the log gates of the {len(gates)} keys in between")
        listed = a.given("log_gates", gates, "the logarithms of the forget gates between the key and the query")
        return a.compute("decay", f"math.fsum({listed})", "their sum: the decay of the score")

    def _decay(self, rows: Index, keys: Index, permitted: Tensor | None) -> Tensor:
        """Return D for these rows and keys, (B, H, n, m), in float64."""
        (N, M), device = self.shape[2:], self.q.device
        row, key = positions(rows, M - N, device), positions(keys, 0, device)
        if self.contiguous:
            return self.sums[..., row].unsqueeze(-1) - self.sums[..., key].unsqueeze(-2)
        gates = self.gates[:, :, None, keys]
        if permitted is not None:
            gates = gates.masked_fill(~permitted, 0.0)
        row, sums = row.unsqueeze(-1), gates.cumsum(-1)
        back = gates.masked_fill(key > row, 0.0).sum(-1, keepdim=True) - sums
        ahead = sums - gates - gates.masked_fill(key >= row, 0.0).sum(-1, keepdim=True)
        return torch.where(key <= row, back, ahead)

    def _fused(self, v: Tensor) -> Tensor:
        """Return the output by the fused kernel, a tile of rows at a time, with D as the matrix added to the scores."""
        assert self.mask is not None
        mask, bias = self.mask, self.bias
        (B, H, N, M), d, width = self.shape, self.q.shape[-1], v.shape[-1]
        kernel = Kernel(1 / math.sqrt(d))
        learns = torch.is_grad_enabled() and self.gates.requires_grad
        wide = max(d + 2 * learns, width)  # the kernel needs equal widths
        v = F.pad(v.expand(B, H, M, width), (0, wide - width))

        def part(rows: slice, keys: Index) -> Tensor:
            keys = keys if isinstance(keys, slice) else mask.key_range(rows)  # with all keys in between
            with torch.no_grad():
                matrix = self._decay(rows, keys, None).to(v.dtype)
                if bias is not None:
                    matrix += cut(bias, rows, keys)
                matrix.masked_fill_(~mask.tile(rows, keys), -torch.inf)
            matrix = matrix.detach()  # a trace records this, but not no_grad()
            q, k = self.q[:, :, rows], self.k[:, :, keys]
            if learns:
                queries, summed = (part.unsqueeze(-1) / kernel.scale for part in self._zeros(rows, keys))
                q = torch.cat([q, queries.to(q.dtype), q.new_ones(*q.shape[:3], 1)], -1)
                k = torch.cat([k, k.new_ones(*k.shape[:3], 1), summed.to(k.dtype)], -1)
            q, k = F.pad(q, (0, wide - q.shape[-1])), F.pad(k, (0, wide - k.shape[-1]))
            return kernel(q, k, v[:, :, keys], matrix)

        if torch.compiler.is_compiling():  # one graph for every length
            return part(slice(0, N), slice(0, M))[..., :width]
        tiles = row_tiles(self.q, mask, M, 4 * B * H)
        size = count(tiles[0][0])
        record(lambda: Dispatch("decayed", f"the fused kernel with a decay per pair; {size} of {N} rows at a time"))
        return by_tiles(part, tiles, self.q)[..., :width]

    def _zeros(self, rows: slice, keys: slice) -> tuple[Tensor, Tensor]:
        """Return zeros for each query, (B, H, n), and key, (B, H, m), whose sum has the gradient of D.

        They are added to the scores because a fused kernel gives no gradient to the matrix. Each is a sum of gates that
        starts at the first row of the tile, so that rounding errors in the gradients do not reach distant gates.
        """
        (N, M), device = self.shape[2:], self.q.device
        first = rows.start + M - N
        key, gates = positions(keys, 0, device), self.gates[:, :, keys]
        before, after = gates.masked_fill(key >= first, 0.0), gates.masked_fill(key < first, 0.0)
        summed = before.flip(-1).cumsum(-1).flip(-1) - before - after.cumsum(-1)
        queries = self.gates[:, :, first : rows.stop + M - N].cumsum(-1)
        return queries - queries.detach(), summed - summed.detach()
