"""Attention: a mechanism whose output is linear in the values, under a matrix (B, H, N, M) that can be queried.

Axes: B batch, N queries, M keys, D embed_dim, H heads.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask, Mask
from attnlab.nn.arguments import accepts_emd_dim as accepts_emd_dim
from attnlab.nn.arguments import check_positive_int as check_positive_int
from attnlab.nn.arguments import divisors_near as divisors_near
from attnlab.nn.arguments import join_or as join_or
from attnlab.nn.arguments import renamed_options as renamed_options
from attnlab.nn.card import Card as Card
from attnlab.nn.card import UnsupportedError as UnsupportedError
from attnlab.nn.mixer import SequenceMixer as SequenceMixer
from attnlab.nn.mixer import zeros_in_graph
from attnlab.nn.projections import copy_weights as copy_weights
from attnlab.nn.projections import current_state as current_state
from attnlab.nn.projections import make_linear as make_linear
from attnlab.ops.attention_map import AttentionMap, DenseMap


class Attention(SequenceMixer):
    """The base class of attention, softmax or not.

    With the capability "weights", a subclass implements `_build_map` or `_attention_weights`, `_values`, and
    `_apply_weights`.
    Takes and raises what `SequenceMixer` does.
    """

    linear_in_weights: ClassVar[bool] = True
    """Whether the output is linear in the attention weights, so that dropout keeps its mean."""

    values_depend_on_mask: ClassVar[bool] = False
    """Whether the values depend on the mask, which ``_apply_weights`` and ``_values`` then get: a convolution mixes
    tokens."""

    @final
    def attention_weights(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B H N M"]:
        """Return the attention weights, (B, H, N, M), rows are queries. Takes and raises what `forward` does.

        They are the weights without dropout. See `attention_map` for parts of a matrix that is too large to
        materialize.
        """
        self._require_capability("weights")
        x, bound, options = self._validate(x, mask, attn_bias, context)
        return self._attention_weights(x, bound, **options)

    @final
    def attention_map(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> AttentionMap:
        """Return the `attention_weights` lazily: rows and heads, sums over blocks of keys, entropies, largest weights,
        or the output for other values. Takes and raises what `forward` does.
        """
        self._require_capability("weights")
        x, bound, options = self._validate(x, mask, attn_bias, context)
        return self._build_map(x, bound, **options)

    @final
    def apply_weights(
        self,
        weights: Float[Tensor, "B H N M"],
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the output for these attention weights.

        ``apply_weights(attention_weights(x, mask=m), x, mask=m)`` equals ``forward(x, mask=m)`` without dropout. Edit
        the weights in between (zero a head, flatten a row) to measure what they contribute.

        Args:
            weights: (B, H, N, M), any values; a row of zeros has no special meaning.
            x: the tokens, (B, N, D).
            mask: the mask that the weights were computed with. Rows that it masks fully, together with ``causal``, are
                zero, and padding is cleared as in `forward`; the weights are not masked again.
            context: the sequence attended to, (B, M, D).

        Raises:
            UnsupportedError: for an argument that this mechanism does not support, or without the capability
                "weights".
            ValueError: for weights, a mask or a context of a shape that does not fit.
        """
        self._require_capability("weights")
        x, bound, options = self._validate(x, mask, None, context)
        wanted = (x.shape[0], self.num_heads, x.shape[1], (x if context is None else context).shape[1])
        if weights.shape != wanted:
            raise ValueError(
                f"weights must have shape (batch, heads, queries, keys) = {wanted}, not {tuple(weights.shape)}"
            )
        if self.values_depend_on_mask:
            options["mask"] = bound
        out = self._apply_weights(weights, x, **options)
        if context is not None and not context.shape[1]:
            return zeros_in_graph(out)
        return out if bound is None else bound.zero_fully_masked_rows(out)

    @final
    def values(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B H M w"]:
        """Return the vectors that the attention weights average, (B, H, M, w). Takes what `apply_weights` takes.

        Values that several heads share are repeated for each of them.

        Raises:
            UnsupportedError: for a mechanism without one set of values, for an argument that it does not support, or
                without the capability "weights".
            ValueError: for a mask or a context of a shape that does not fit.
        """
        self._require_capability("weights")
        x, bound, options = self._validate(x, mask, None, context)
        if self.values_depend_on_mask:
            options["mask"] = bound
        return self._values(x, **options)

    # For subclasses: ``mask`` already contains ``causal`` and the pattern; only supported arguments are passed.

    def _build_map(self, x: Tensor, mask: BoundMask | None, *args: Any, **options: Any) -> AttentionMap:
        if type(self)._attention_weights is Attention._attention_weights:
            raise NotImplementedError(
                f"{type(self).__name__} has the capability weights, but no _build_map and no _attention_weights"
            )
        return DenseMap(self._attention_weights(x, mask, *args, **options))

    def _attention_weights(self, x: Tensor, mask: BoundMask | None, *args: Any, **options: Any) -> Tensor:
        return self._build_map(x, mask, *args, **options).materialize()

    def _apply_weights(self, weights: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has the capability weights, but no _apply_weights")

    def _values(self, x: Tensor) -> Tensor:
        raise UnsupportedError(f"{type(self).__name__} does not define its values; implement _values")
