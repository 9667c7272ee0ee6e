"""Reformer attention: locality-sensitive hashing sorts the tokens, and each attends to tokens near it in that order."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.arithmetic import Arithmetic, Cell, Row, masked, softmax
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import at_least_float32
from attnlab.utils.tracing import full_precision

MASKED = torch.finfo(torch.float32).min
"""The score of a key that is left out; also in float64, because ONNX rounds the number to float32."""

UNREACHABLE = 2**30
"""The place of a key that no query attends to."""


class ReformerAttention(MultiHeadBase):
    """``head_i = Σ_{j ∈ P_i} softmax_j(q_i · k_j) v_j`` with ``k_j = q_j / ‖q_j‖`` and P_i, the keys of query i.

    In each of r rounds, the vectors q are hashed: ``bucket(q) = argmax([q R; -q R])`` with a random matrix R. The
    tokens are sorted by bucket and position, and cut into chunks of c tokens. P_i holds the tokens of the chunk of i
    and of the chunk before it, of any round. If the layer is causal, P_i holds the last c tokens before i in the bucket
    of i instead, because chunks would change with later tokens. A token attends to itself only if P_i holds no other.

    Source: Kitaev et al. 2020, "Reformer: The Efficient Transformer", section 2 and appendix A. The norm of k is that
    of the authors' code, where the factor 1/√d is cancelled by a norm of √d.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        num_buckets: b, the number of buckets of a round, even; or 1: every token is in one bucket.
        num_hashes: r, the number of rounds.
        chunk_length: c, the number of tokens of a chunk.
        hash_seed: the seed of the random matrices, which are saved with the parameters.
        causal: whether a token attends only to earlier tokens, or to itself if there is none.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for an odd number of buckets above 1, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Reformer attention",
        summary="hashing sorts the tokens into buckets; each attends to a few tokens of similar direction",
        paper="Reformer: The Efficient Transformer",
        authors="Kitaev et al.",
        year=2020,
        arxiv="2001.04451",
        kind="approximation",
        heads="h",
        time="n·r·(c + b)·d + n·d²",
        memory="n·r·c·h + n·d",
        representation="h sparse softmax attention matrices; the tokens decide where they are zero",
        use_case="long sequences where each token has a few similar ones",
        supports=("causal", "padding", "weights"),
        parent="multihead",
    )

    supports_packing = False

    rotations: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_buckets: int = 16,
        num_hashes: int = 2,
        chunk_length: int = 64,
        hash_seed: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, device=device, dtype=dtype)
        self.num_buckets = check_positive_int("num_buckets", num_buckets)
        self.hash_seed = check_positive_int("hash_seed", hash_seed, 0)
        if num_buckets > 1 and num_buckets % 2:
            raise ValueError(f"num_buckets must be even, or 1 for no hashing, not {num_buckets}; try {num_buckets + 1}")
        self.num_hashes = check_positive_int("num_hashes", num_hashes)
        self.chunk_length = check_positive_int("chunk_length", chunk_length)
        shape = (num_heads, num_hashes, self.head_dim, num_buckets // 2)
        self.register_buffer("rotations", torch.empty(shape, device=device, dtype=dtype))  # R
        self._reset_rotations()

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """The features of ``qkv``: queries, which are the keys too, and values."""
        width = self.num_heads * self.head_dim
        return width, 0, width

    def is_continuous(self, length: int) -> bool:
        """Whether no token of a sequence of this length is left out because of its bucket."""
        return self.num_buckets == 1 or (length <= self.chunk_length and not self.causal)

    def reset_parameters(self) -> None:
        """Initialize the projections at random, and the random matrices from ``hash_seed``."""
        super().reset_parameters()
        self._reset_rotations()

    def _reset_rotations(self) -> None:
        if not self.rotations.is_meta:
            generator = torch.Generator().manual_seed(self.hash_seed)
            shape = self.rotations.shape
            self.rotations.copy_(torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu"))

    def _project_qkv(
        self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B M D"] | None
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        Q, V = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (2, -1, self.head_dim)).unbind(2))
        return Q, Q, V

    def _forward(
        self, x: Float[Tensor, "B N D"], mask: BoundMask | None, *args: Any, **options: Any
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, None)
        heads = self._attention_map(Q, K, mask).apply(V)
        return self._merge_heads(F.dropout(heads, self.dropout, self.training), x)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H N d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> HashedMap:
        N = Q.shape[2]
        rules = [] if mask is None else mask.real_keys(N)
        real = torch.stack(rules).all(0) if rules else torch.ones(1, N, dtype=torch.bool, device=Q.device)
        # Padding is sorted last, so that it moves no token.
        buckets = self._buckets(Q.detach()).masked_fill(~real[:, None, None], self.num_buckets)
        return HashedMap(Q, buckets, real, self.chunk_length, self.causal)

    def _buckets(self, Q: Float[Tensor, "B H N d"]) -> Int[Tensor, "B H r N"]:
        """Return the bucket of each token in each round."""
        if self.num_buckets == 1:
            return Q.new_zeros(*Q.shape[:2], self.num_hashes, Q.shape[2], dtype=torch.long)
        Q = at_least_float32(Q).unsqueeze(2)
        with full_precision(Q.device):
            rotated = Q @ self.rotations.to(Q.dtype)  # (B, H, r, N, b / 2)
        return torch.cat([rotated, -rotated], -1).argmax(-1)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        channels, width = head_channels(heads, self.head_dim), self.num_heads * self.head_dim
        select_features(self.qkv, rows=[*channels, *(width + i for i in channels)])
        select_features(self.output, columns=channels)
        self.rotations = self.rotations[heads]
        self.num_heads = self.num_kv_heads = len(heads)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return (
            f"{super().extra_repr()}, num_buckets={self.num_buckets}, num_hashes={self.num_hashes}, "
            f"chunk_length={self.chunk_length}"
        )


class HashedMap(AttentionMap):
    """The attention weights of `ReformerAttention`, never materialized: chunks of c queries, each with 2 c keys.

    Args:
        Q: (B, H, N, d).
        buckets: the bucket of each token in each round, (B, H, r, N).
        real: which positions hold a token, (B | 1, N).
        chunk: c.
        causal: whether a token attends only to earlier ones of its bucket.
    """

    def __init__(self, Q: Tensor, buckets: Tensor, real: Tensor, chunk: int, causal: bool) -> None:
        B, H, N, d = Q.shape
        super().__init__((B, H, N, N), Q)
        if torch.compiler.is_compiling():  # at least 2 chunks, because PyTorch specializes a traced length of one
            self.chunks = N // chunk + 2
        else:
            chunk = max(1, min(chunk, N))
            self.chunks = -(-N // chunk)
        self.chunk, self.causal = chunk, causal
        self.Q = at_least_float32(Q)
        self.K = self.Q * torch.rsqrt(self.Q.square().sum(-1, keepdim=True) + 1e-6 * d)
        position = torch.arange(N, device=Q.device)
        self.order = (buckets * N + position).argsort(-1)  # (B, H, r, N)
        self.rank = torch.empty_like(buckets).scatter(-1, self.order, position.expand_as(buckets))  # its inverse
        # A query attends to keys that are at most `reach` places behind it; causal, not to those at its own place.
        self.reach = chunk if causal else 1
        self.place = (self.rank + buckets * chunk if causal else self.rank // chunk).int()
        self.key_place = self.place.masked_fill(~real[:, None, None], UNREACHABLE)
        # The key of a query without others, (B | 1, N): the token itself; of padding the first token; N for no key.
        first = (real.cumsum(-1) == 0).sum(-1, keepdim=True)
        self.alone = torch.where(real, position, torch.where(first <= position, first, N) if causal else first)

    @property
    def changes(self) -> frozenset[str]:
        """A temperature; the scores are not divided by √d."""
        return frozenset({"temperature"})

    def _with_scores(self, options: ScoreOptions) -> HashedMap:
        changed = copy.copy(self)  # the keys and the buckets stay the same
        changed.Q = self.Q / options.temperature
        return changed

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        b, h, i, j = cell
        rows = torch.tensor([i], device=self.Q.device)
        allowed = self._allowed(rows)[b, :, 0]
        if not allowed[h].any():
            alone = float(j == self.alone[b if len(self.alone) > 1 else 0, i])
            a.given("weight", alone, "no other key is in a bucket of the query, which then attends to itself")
            return
        q = a.given("q", self.Q[b, h, i], "the query")
        k = a.given("k", self.K[b, h, j], "the key: the query of its token, divided by its norm")
        products = a.compute("products", f"[x * y for x, y in zip({q}, {k})]", "the products of their features")
        score = a.compute("score", f"sum({products})", "q · k")
        scores = (self.Q[b, :, rows] @ self.K[b].mT)[:, 0]
        row = Row(cell, score, scores, allowed, "no round puts the key near the query in its bucket")
        (masked if row.is_masked else softmax)(a, row)

    def _allowed(self, rows: Tensor) -> Tensor:
        """Return which keys these queries attend to, other than their own tokens, (B, H, rows, N)."""
        position = torch.arange(self.shape[3], device=rows.device)
        near = self._near(self.place[..., rows], self.key_place).any(2)
        return near & (rows.unsqueeze(-1) != position)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values, (B, H, N, w); raise ValueError for a dropout of attention weights."""
        if dropout:
            raise ValueError(
                f"later tokens must not decide which weights are dropped; dropout must be 0, not {dropout}"
            )
        B, H, N, _ = self.shape
        dtype, values = values.dtype, at_least_float32(values).expand(B, H, -1, -1)
        with full_precision(values.device):
            rounds = [self._round(r, values) for r in range(self.order.shape[2])]
            outs, totals, tops = (torch.stack(part) for part in zip(*rounds, strict=True))
            scale = (tops - tops.amax(0)).exp2()
            total = (totals * scale).sum(0)  # at least 1, or 0 if there is no other key
            out = (outs * scale).sum(0) / total.clamp_min(1.0)
            index = self.alone[:, None].expand(B, H, -1)
            alone = take(values, index.clamp(max=N - 1)) * (index < N).unsqueeze(-1)
        return torch.where(total > 0, out, alone).to(dtype)

    def _round(self, r: int, values: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of the weighted values and of the weights, and the base-2 logarithm of their factor.

        A key that an earlier round has for the same query is left out, so that none counts twice.
        """
        N, c, device = self.shape[2], self.chunk, values.device
        start = c * torch.arange(self.chunks, device=device).unsqueeze(1)
        query, key = (start + torch.arange(first, c, device=device) for first in (0, -c))  # ranks, (chunks, c or 2 c)
        queries, keys = (self.order[:, :, r, rank.clamp(0, N - 1)] for rank in (query, key))
        allowed = ((key >= 0) & (key < N)).unsqueeze(1) & (query.unsqueeze(2) != key.unsqueeze(1))
        for s in range(r + 1):
            near = self._near(take(self.place[:, :, s], queries), take(self.key_place[:, :, s], keys))
            allowed = allowed & (near if s == r else ~near)
        # exp2, because exp is slow where it underflows; no Python scalar, which ONNX rounds to float32.
        Q = self.Q / self.Q.new_full((), 2).log()
        scores = (take(Q, queries) @ take(self.K, keys).mT).masked_fill(~allowed, MASKED)
        top = scores.detach().amax(-1, keepdim=True)  # it cancels, so it has no gradient
        weights = (scores - top).exp2() * allowed
        parts = torch.cat([weights @ take(values, keys), weights.sum(-1, keepdim=True), top], -1).flatten(2, 3)
        return take(parts, self.rank[:, :, r]).split([values.shape[-1], 1, 1], -1)

    def _near(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether keys at these places, (*rest, m), are keys of queries at those, (*rest, n): (*rest, n, m)."""
        distance = query.unsqueeze(-1) - key.unsqueeze(-2)
        return (distance >= self.causal) & (distance <= self.reach)

    def _rows(self, rows: Tensor) -> Tensor:
        position, allowed = torch.arange(self.shape[3], device=rows.device), self._allowed(rows)
        with full_precision(rows.device):
            scores = (self.Q[:, :, rows] @ self.K.mT).masked_fill(~allowed, MASKED)
        alone = (self.alone[:, None, rows, None] == position).to(scores.dtype)
        return torch.where(allowed.any(-1, keepdim=True), scores.softmax(-1) * allowed, alone).to(self._like.dtype)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the entries of ``x``, (B, H, N, *w), at ``index``, (B, H, *rest): (B, H, *rest, *w)."""
    item, head = (torch.arange(size, device=x.device) for size in index.shape[:2])
    rest = [1] * (index.dim() - 2)
    return x[item.view(-1, 1, *rest), head.view(-1, *rest), index]
