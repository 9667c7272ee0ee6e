"""Nyström attention: m landmarks, the means of segments, stand for all keys and all queries in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, from_attention_mask
from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import at_least_float32, scaled_dot_product
from attnlab.ops.softmax import SoftmaxMap
from attnlab.utils.tracing import full_precision


class NystromAttention(MultiHeadBase):
    """``head = softmax(Q K̃ᵀ / √d) A⁺ softmax(Q̃ Kᵀ / √d) V`` with ``A = softmax(Q̃ K̃ᵀ / √d)``.

    The landmarks Q̃ and K̃ are the means of the queries and of the keys over m segments of consecutive real tokens,
    whose lengths differ by at most one. With at least as many landmarks as tokens every token is its own landmark, and
    the exact pseudo-inverse A⁺ gives exact softmax attention, because A A⁺ A = A.

    Source: Xiong et al. 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", section 3.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        num_landmarks: m, the number of landmarks.
        inverse: how A⁺ is computed: "iterative", by the iteration of section 3.2, or "exact", by a singular value
            decomposition.
        iterations: the steps of the iteration.
        conv_kernel: the width of a depth-wise convolution of the values, which is added to the heads; odd, or 0 for
            none. The models of the paper have one of 33; with it, the layer is no approximation of softmax attention.
        causal: must be False, because a landmark is a mean over later tokens too.
        dropout: the probability of dropping an attention weight of a landmark, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for an even width of the convolution, another inverse, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Nyström attention",
        summary="a few landmarks, means of segments, stand for all queries and keys: time linear in n",
        paper="Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention",
        authors="Xiong et al.",
        year=2021,
        arxiv="2102.03902",
        kind="approximation",
        heads="h",
        time="n·m·d + n·d² + h·m³",
        memory="n·d + h·m²",
        representation="h signed matrices of rank at most m",
        use_case="encoders of long sequences of any length",
        supports=("padding", "weights"),
        parent="multihead",
        weights="signed",
    )

    supports_packing = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_landmarks: int = 64,
        inverse: Literal["iterative", "exact"] = "iterative",
        iterations: int = 6,
        conv_kernel: int = 0,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, device=device, dtype=dtype)
        self.num_landmarks = check_positive_int("num_landmarks", num_landmarks)
        self.iterations = check_positive_int("iterations", iterations)
        if inverse not in ("iterative", "exact"):
            raise ValueError(f"inverse must be 'iterative' or 'exact', not {inverse!r}")
        if check_positive_int("conv_kernel", conv_kernel, 0) and conv_kernel % 2 == 0:
            raise ValueError(
                f"conv_kernel must be odd, with the token in the middle, or 0 for none, not {conv_kernel}; "
                f"try {conv_kernel + 1}"
            )
        self.inverse, self.conv_kernel = inverse, conv_kernel
        self.conv = self._make_conv() if conv_kernel else None

    def _make_conv(self) -> nn.Conv2d:
        """Return the convolution along the length, with one filter per head."""
        H, width, like = self.num_heads, self.conv_kernel, self.qkv.weight
        padding = (width // 2, 0)
        return nn.Conv2d(H, H, (width, 1), padding=padding, groups=H, bias=False, device=like.device, dtype=like.dtype)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H N d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> NystromMap:
        steps = None if self.inverse == "exact" else self.iterations
        return NystromMap(Q, K, mask, self.num_landmarks, steps, self.conv)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        if self.conv is not None:
            weight = self.conv.weight[heads]
            self.conv = self._make_conv()
            self.conv.weight.copy_(weight)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        inverse = self.inverse if self.inverse == "exact" else f"{self.iterations} iterations"
        return f"{super().extra_repr()}, num_landmarks={self.num_landmarks}, inverse={inverse}"


class NystromMap(AttentionMap):
    """``softmax(Q K̃ᵀ / √d) A⁺ softmax(Q̃ Kᵀ / √d)``, plus the convolution, never materialized.

    Args:
        Q: (B, H, N, d).
        K: (B, H, N, d).
        mask: a conjunction of padding masks.
        landmarks: m.
        iterations: the steps of the iteration for A⁺; None for the exact one.
        conv: maps values (B, H, N, w) to the same shape; None for no convolution.
    """

    implied = True

    def __init__(
        self,
        Q: Tensor,
        K: Tensor,
        mask: BoundMask | None,
        landmarks: int,
        iterations: int | None,
        conv: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__((*Q.shape[:3], K.shape[2]), Q)
        self.conv = conv
        self.real = None if mask is None else _real_tokens(mask, K.shape[2])
        self.Q, self.K = at_least_float32(Q), at_least_float32(K)
        with full_precision(Q.device):
            index, self.counts = _segments(self.real, K, landmarks)
            self.Q_landmarks = _means(self.Q, landmarks, index, self.counts)
            self.K_landmarks = _means(self.K, landmarks, index, self.counts)
            A = _probabilities(self.Q_landmarks, self.K_landmarks, self._filled)
            self.inverse = torch.linalg.pinv(A) if iterations is None else iterative_pinv(A, iterations)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values; ``dropout`` drops weights of the landmarks."""
        B, H = self.shape[:2]
        values = values.expand(B, H, -1, -1)
        if self.real is not None:
            values = values.masked_fill(~self.real[:, None, :, None], 0.0)
        with full_precision(values.device):
            summaries = self._softmax(self.Q_landmarks, self.K, self.real).apply(at_least_float32(values))
            weights = self._softmax(self.Q, self.K_landmarks, self._filled)
            out = weights.apply(self.inverse @ summaries, dropout=dropout).to(values.dtype)
        return out if self.conv is None or not self.shape[2] else out + self.conv(values)

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        b, h, i, j = cell
        with full_precision(self.Q.device):
            left = self._softmax(self.Q[:, :, i : i + 1], self.K_landmarks, self._filled).materialize()[b, h, 0]
            right = self._softmax(self.Q_landmarks, self.K, self.real).materialize()[b, h, :, j]
            column = self.inverse[b, h] @ right
        left_name = a.given("left", left, "softmax(q K̃ᵀ / √d): the weights of the query over the key landmarks")
        a.given("right", right, "softmax(Q̃ k / √d): the weights of the key in the rows of the query landmarks")
        product = a.given("inverse_right", column, "A⁺ times the line above; A holds the landmarks' weights")
        code = f"sum(x * y for x, y in zip({left_name}, {product}))"
        weight = a.compute("factored" if self.conv is not None else "weight", code, "the implied weight")
        if self.conv is not None:
            one = self.Q.new_zeros(1, self.shape[1], self.shape[3], 1)
            if self.real is None or self.real[b if len(self.real) > 1 else 0, j]:
                one[:, :, j] = 1.0
            near = a.given("convolution", self.conv(one)[0, h, i, 0], "the weight of the convolution over the values")
            a.compute("weight", f"{weight} + {near}", "the implied weight with the convolution")

    def _rows(self, rows: Tensor) -> Tensor:
        if self.conv is not None:
            return super()._rows(rows)
        left = self._softmax(self.Q[:, :, rows], self.K_landmarks, self._filled).materialize()
        right = self._softmax(self.Q_landmarks, self.K, self.real).materialize()
        return (left @ (self.inverse @ right)).to(self._like.dtype)

    @property
    def _filled(self) -> Tensor | None:
        """Which landmarks have tokens, (B | 1, m); None for all."""
        return None if self.counts is None else self.counts > 0

    def _softmax(self, Q: Tensor, K: Tensor, keep: Tensor | None) -> SoftmaxMap:
        if keep is None:
            return SoftmaxMap(Q, K)
        shape = (Q.shape[0], Q.shape[1])
        return SoftmaxMap(Q, K, from_attention_mask(keep).bind(Q.shape[2], K.shape[2], shape=shape, device=Q.device))


def _probabilities(Q: Tensor, K: Tensor, filled: Tensor | None) -> Tensor:
    """Return A, (B, H, m, m), with zeros in the rows and columns of landmarks without tokens."""
    scores = scaled_dot_product(Q, K)
    if filled is None:
        return scores.softmax(-1)
    keep = filled[:, None]
    A = scores.masked_fill(~keep.unsqueeze(-2), torch.finfo(scores.dtype).min).softmax(-1)
    return A.masked_fill(~(keep.unsqueeze(-2) & keep.unsqueeze(-1)), 0.0)


def iterative_pinv(A: Tensor, iterations: int) -> Tensor:
    """Return the approximate pseudo-inverse of a matrix of probabilities, or of zeros, (..., m, m).

    Each matrix is scaled by its own norms, so that no other item of the batch has an effect.

    Source: Razavi et al. 2014, "A New Iterative Method for Finding Approximate Inverses of Complex Matrices"; Xiong et
    al. 2021, section 3.2, equation 11.
    """
    if not A.numel():
        return A.mT
    norms = A.sum(-2).amax(-1) * A.sum(-1).amax(-1)  # the entries are not negative
    Z = A.mT / norms[..., None, None].clamp_min(torch.finfo(A.dtype).tiny)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    for _ in range(iterations):
        AZ = A @ Z
        Z = 0.25 * Z @ (13 * identity - AZ @ (15 * identity - AZ @ (7 * identity - AZ)))
    return Z


def _real_tokens(mask: BoundMask, length: int) -> Tensor | None:
    """Return which positions hold a token, (B | 1, N); None for all."""
    real = mask.real_keys(length)
    return torch.stack(real).all(0) if real else None


def _segments(real: Tensor | None, like: Tensor, landmarks: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens of m segments, (B | 1, m, L), with N where a segment is shorter, and their numbers, (B | 1, m).

    Of n real tokens, token i is in segment ⌊i m / n⌋. None stands for equal segments, all of them filled.
    """
    N = like.shape[2]
    if real is None and not torch.compiler.is_compiling() and (landmarks >= N or N % landmarks == 0):
        return None, None
    bounds = torch.arange(landmarks + 1, device=like.device).unsqueeze(0)
    count = bounds.new_full((1, 1), N) if real is None else real.sum(-1, keepdim=True)
    starts = (bounds * count + landmarks - 1) // landmarks  # (B | 1, m + 1)
    L = N // landmarks + 2  # at least 2, which a traced length keeps free
    places = torch.arange(L, device=like.device) + starts[:, :-1, None]
    places = places.where(places < starts[:, 1:, None], N)
    if real is not None:  # from places among the real tokens to positions
        rest = torch.cat([~real, real.new_ones(real.shape[0], 1)], -1)  # the place N stands for no token
        order = (torch.arange(N + 1, device=like.device) + bounds.new_full((1, 1), N + 1) * rest).argsort(-1)
        places = order.gather(1, places.flatten(1)).unflatten(1, (landmarks, -1))
    return places, starts.diff(dim=-1)


def _means(x: Tensor, landmarks: int, index: Tensor | None, counts: Tensor | None) -> Tensor:
    """Return the mean of each segment, (B, H, m, d); zero for a segment without tokens."""
    if index is None or counts is None:
        return x if x.shape[2] <= landmarks else x.unflatten(2, (landmarks, -1)).mean(3)
    B, H, _, d = x.shape
    flat = index.flatten(1)[:, None, :, None].expand(B, H, -1, d)
    tokens = F.pad(x, (0, 0, 0, 1)).gather(2, flat)
    return tokens.unflatten(2, (landmarks, -1)).sum(3) / counts.clamp(min=1)[:, None, :, None]
