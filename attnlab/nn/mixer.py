"""The contract of every mechanism: ``(B, N, D)`` in, the same shape out. The base of attention and of recurrences.

Axes: B batch, N length (N_q queries, N_k keys), D embed_dim, H heads, d head_dim.

A mechanism implements `SequenceMixer._forward`. The public `SequenceMixer.forward` validates the arguments, combines
``causal``, the pattern of the mechanism and the mask, and zeros fully masked rows. What a mechanism does not support
raises `UnsupportedError`; nothing is silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, Mask, as_mask, causal
from attnlab.nn.arguments import (
    CONSTRUCTOR_REPLACEMENTS,
    check_positive_int,
    divisors_near,
    explain_input,
    explain_unknown_arguments,
    join_or,
)
from attnlab.nn.cache import DecodingCache, KVCache, RecurrentState, restore, snapshot
from attnlab.nn.card import CAPABILITIES, Card, UnsupportedError
from attnlab.nn.projections import rename_keys, reset_children
from attnlab.ops.bias import four_axes
from attnlab.ops.packing import packed
from attnlab.utils.tracing import can_keep_tensors

MAX_KEPT_VALUES = 2**22
"""The size of a mask, in elements, up to which its bound form is kept for later layers."""

_VERSION = attrgetter("_version")
_KEPT = "_bound"
"""The attribute of a mask that holds its last bound form: (what it depends on, versions of its tensors, the form)."""


class _ExplainsOptions:
    """Refuses the options of nn.MultiheadAttention with their replacements."""

    if not TYPE_CHECKING:  # not in SequenceMixer, whose __init__ inspect.signature shows

        def __new__(cls, *args: Any, **options: Any) -> Any:
            for option, replacement in CONSTRUCTOR_REPLACEMENTS.items():
                if option in options:
                    raise TypeError(f"{cls.__name__} has no option {option}; {replacement}")
            return super().__new__(cls)


class SequenceMixer(_ExplainsOptions, nn.Module):
    """The base class of all mechanisms, whether attention or a recurrence.

    Args:
        embed_dim: D, the width of a token, in and out.
        num_heads: H; must divide ``embed_dim`` unless ``head_dim`` is given.
        head_dim: d, the width of a head; ``embed_dim / num_heads`` by default.
        causal: a token attends only to itself and to earlier tokens.
        dropout: the dropout probability, in training only: of attention weights, or of the output of a recurrence.

    Raises:
        TypeError: for a size that is not an integer.
        ValueError: for a size below 1, ``num_heads`` that does not divide ``embed_dim``, a dropout outside [0, 1).
        UnsupportedError: for ``causal=True`` if the mechanism does not support it, for False if it is always causal.
    """

    card: ClassVar[Card]

    cache_type: ClassVar[type[KVCache] | type[RecurrentState]] = KVCache
    """The cache that the mechanism decodes with; see `make_cache`."""

    supports_packing: ClassVar[bool] = False
    """Whether ``_forward`` treats several sequences in one row (a ``documents`` mask) independently, so that a padded
    batch may be packed into one row. The output must depend only on the tokens and the mask."""

    is_relative: ClassVar[bool] = True
    """Whether the same tokens at later positions give the same output; not where blocks are counted from the first
    position. An attention pattern that depends on positions tells it by itself."""

    batch_first: ClassVar[bool] = True
    in_proj_bias: ClassVar[None] = None
    """Read by `nn.TransformerEncoderLayer` before it calls `forward`, which then names the adapter to use."""

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """The new name of each submodule or parameter that state dicts of earlier versions hold under an old name."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        head_dim: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "head_dim": 1 if head_dim is None else head_dim}
        for name, value in sizes.items():
            check_positive_int(name, value)
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"embed_dim ({embed_dim}) must be divisible by num_heads ({num_heads}); "
                f"try num_heads={join_or(divisors_near(embed_dim, num_heads))}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
        if causal:
            self._require_capability("causal")
        elif self.card.always_causal:
            raise UnsupportedError(f"{type(self).__name__} is always causal; leave causal at its default, True")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.causal = causal
        self.dropout = dropout

    if TYPE_CHECKING:

        def __call__(
            self,
            x: Tensor,
            *,
            mask: Mask | Tensor | None = None,
            attn_bias: Tensor | None = None,
            context: Tensor | None = None,
            cache: DecodingCache | None = None,
        ) -> Tensor:
            """Call `forward`, whose types nn.Module hides."""
            raise NotImplementedError

    # The public interface

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        *unexpected: Any,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
        cache: DecodingCache | None = None,
        **unknown: Any,
    ) -> Float[Tensor, "B N D"]:
        """Compute the output for each token.

        Args:
            x: the tokens, (B, N, D).
            mask: a `Mask`, or a Boolean tensor (N_q, N_k), (B, N_q, N_k) or (B, H, N_q, N_k) in which True means
                *attend*. It is combined with ``causal``.
            attn_bias: added to the scores before the softmax, broadcastable to (B, H, N_q, N_k). It must be finite; use
                a mask for -inf (`attnlab.masks.from_attn_mask` converts).
            context: the sequence attended to, (B, M, D); x itself by default. With ``causal=True`` it must be as long
                as ``x``; to align the last query with the last key instead, use ``causal=False`` and
                ``mask=causal()``.
            cache: the cache of the earlier tokens, from `make_cache`; ``x`` holds only the new tokens, mask and bias
                refer to all keys. Needs ``causal=True`` or a causal mask. A call that raises leaves it unchanged.
            *unexpected: nothing; other positional arguments raise TypeError.
            **unknown: nothing; other keyword arguments raise TypeError.

        Returns:
            (B, N, D), in the dtype of ``x``. A fully masked row is zero. The content of positions that a padding mask
            (`padding`, `from_key_padding_mask`, `from_attention_mask`) excludes, NaN included, does not affect any
            other position or gradient. NaN anywhere else is unspecified.

        Raises:
            UnsupportedError: for an argument that this mechanism does not support.
            ValueError: for a shape or a device that does not fit; a padding length above the number of keys (checked
                on a CPU, outside of a trace); ``causal=True`` with a context of another length; a cache that is full,
                or of another batch size, dtype or device, or with which the result would differ from the full pass.
            TypeError: for a mask that is not Boolean, an ``x`` of another dtype than the parameters.
        """
        if unexpected or unknown:
            raise explain_unknown_arguments(type(self).__name__, unexpected, unknown)
        before = {} if cache is None else snapshot(cache)
        try:
            x, bound, options = self._validate(x, mask, attn_bias, context, cache)
            if bound is None:
                out = self._forward(x, None, **options)
            else:
                if self.supports_packing and mask is not None and not options:
                    rows = packed(x, bound, self.num_heads)
                    if rows is not None:
                        return rows.run(lambda x, mask: mask.zero_fully_masked_rows(self._forward(x, mask)), x)
                out = bound.zero_fully_masked_rows(self._forward(x, bound, **options))
        except BaseException as error:
            restore(cache, before)
            if isinstance(error, RuntimeError | TypeError | IndexError):
                explain_input(self, x, context, error)
                if cache is not None and getattr(cache, "is_loaded", False):
                    raise ValueError(
                        f"what was loaded into the cache does not fit this {type(self).__name__} ({error}); load it "
                        "for a layer of the same mechanism with the same options"
                    ) from error
            raise
        return out if context is None or context.shape[1] else zeros_in_graph(out)

    def attention_pattern(self, length: int) -> Mask | None:
        """Return the keys that this mechanism attends to in a sequence of this length, as a mask; None for all keys.

        It is combined with ``causal`` and with the mask of the call.
        """
        return None

    @property
    def cache_window(self) -> int | None:
        """The number of last tokens that a causal layer attends to, which are enough to cache; None for all."""
        return None

    def is_continuous(self, length: int) -> bool:
        """Whether the output for this length is a continuous function of the tokens and the parameters.

        It is not where keys are selected by rank: rounding may then change which are selected.
        """
        return True

    def auxiliary_loss(
        self, x: Tensor, *, mask: Mask | Tensor | None = None, context: Tensor | None = None
    ) -> Tensor | None:
        """Return a loss of this layer that training adds to that of the task; None if it has none.

        Takes the arguments of `forward`. It has no gradient in ``x``.
        """
        return None

    def make_cache(self, capacity: int, *, window: int | None = None) -> KVCache | RecurrentState:
        """Return an empty cache for incremental decoding.

        Args:
            capacity: the maximum number of tokens of a KV cache; a recurrent state has no maximum.
            window: the tokens that a KV cache keeps; all by default.

        Raises:
            UnsupportedError: if the mechanism does not support a cache.
            ValueError: for a window of a recurrent state, and what `KVCache` refuses.
        """
        self._require_capability("cache")
        if self.cache_type is KVCache:
            return KVCache(capacity, window=window)
        if window is not None:
            raise ValueError(f"{type(self).__name__} keeps a state of constant size; it takes no window")
        return RecurrentState()

    def supports(self, capability: str) -> bool:
        """Whether the mechanism has this capability.

        Raises:
            ValueError: for a name that is not in `attnlab.nn.card.CAPABILITIES`.
        """
        if capability not in CAPABILITIES:
            raise ValueError(f"{capability!r} is not a capability; there are {', '.join(CAPABILITIES)}")
        return capability in self.card.supports

    def reset_parameters(self) -> None:
        """Initialize all parameters again, as the constructor does; for a layer that was built on the meta device.

        A subclass with parameters or buffers of its own overrides it, and calls it first.
        """
        reset_children(self)

    def scale_output(self, factor: float) -> None:
        """Multiply the weight of the output projection, as the initialization of residual branches needs it.

        Override it if that projection is not called ``output``.
        """
        output = self.get_submodule("output")
        with torch.no_grad():
            output.weight.mul_(factor)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, causal={self.causal}, dropout={self.dropout}"

    # For subclasses: ``mask`` already contains ``causal`` and the pattern; only supported arguments are passed.

    def _forward(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no _forward")

    def _drop_equivariance(self) -> None:
        """Remove the capabilities "equivariant" and "context", which a layer with positions does not have.

        Positions in two sequences have no distance.
        """
        left = tuple(word for word in self.card.supports if word not in ("equivariant", "context"))
        layer: Any = self  # the card of this layer, not of its class
        layer.card = replace(self.card, supports=left)

    # Validation

    def _require_capability(self, capability: str) -> None:
        if capability not in self.card.supports:
            raise UnsupportedError(
                f"{type(self).__name__} does not support {capability}; "
                f"it supports {', '.join(self.card.supports) or 'self-attention alone'}"
            )

    def _validate(
        self,
        x: Tensor,
        mask: Mask | Tensor | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
        cache: DecodingCache | None = None,
    ) -> tuple[Tensor, BoundMask | None, dict[str, Any]]:
        """Check the arguments, bind ``causal``, the pattern and the mask to the lengths, and clear the padding."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a Tensor, not {type(x).__name__}; convert it with torch.as_tensor(x)")
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"{type(self).__name__} takes x of shape (batch, length, {self.embed_dim}), not {tuple(x.shape)}"
            )
        options: dict[str, Any] = {}
        queries = keys = x.shape[1]
        if context is not None:
            keys = self._validate_context(x, context)
            options["context"] = context
        if cache is not None:
            options["cache"] = cache
        bound = self._bind(x, mask, keys, context, cache)
        if attn_bias is not None:
            start = 0 if cache is None else cache.start
            keys = keys if cache is None else cache.num_seen + queries - start
            options["attn_bias"] = self._validate_bias(x, attn_bias, keys, start)
        if mask is not None and bound is not None:
            if context is None:
                x = bound.zero_padding(x)
            else:
                options["context"] = bound.zero_padding(context)
        return x, bound, options

    def _bind(
        self,
        x: Tensor,
        mask: Mask | Tensor | None,
        keys: int,
        context: Tensor | None,
        cache: DecodingCache | None,
    ) -> BoundMask | None:
        """Combine the mask with the pattern and ``causal``, bound to the lengths.

        The bound mask is kept with the mask, so that the layers of a network, which get the same mask, bind it once.
        """
        seen, queries = 0 if cache is None else getattr(cache, "num_seen", 0), x.shape[1]
        pattern = self.attention_pattern(seen + keys)
        if mask is None and pattern is None and cache is None:
            if not self.causal:
                return None
            return causal().bind(queries, keys, shape=(x.shape[0], self.num_heads), device=x.device)
        key = None
        if cache is None and pattern is None and isinstance(mask, Mask) and can_keep_tensors():
            key = self.causal, x.shape[0], self.num_heads, queries, keys, x.device, torch.is_inference_mode_enabled()
            kept = vars(mask).get(_KEPT)
            if kept is not None and kept[0] == key and kept[1] == list(map(_VERSION, mask.tensors)):
                if "arbitrary_mask" not in self.card.supports:
                    self._validate_mask(mask)
                return kept[2]
        rule = None if mask is None else self._validate_mask(as_mask(mask))
        if pattern is not None:
            rule = pattern if rule is None else pattern & rule
        if self.causal:
            rule = causal() if rule is None else causal() & rule
        start = 0
        if cache is not None:
            self._validate_cache(x, rule, context, cache)
            keys = seen + queries
            if isinstance(cache, KVCache):
                if queries == 1 and mask is None and pattern is None:
                    return None  # the last token attends to every key
                keys, start = cache.num_cached + queries, cache.start
        elif mask is not None and rule is not None:  # with a cache, sequences may still grow to these lengths
            rule.check_lengths(keys)
        if rule is None:
            return None
        bound = rule.bind(queries, keys, shape=(x.shape[0], self.num_heads), first=start, device=x.device)
        if key is None:  # the size below would restrict an exported length
            return bound
        small = rule.batch_size * rule.num_heads * queries * keys <= MAX_KEPT_VALUES
        if small and not any(t.is_inference() for t in rule.tensors):  # these have no version
            vars(mask)[_KEPT] = key, list(map(_VERSION, rule.tensors)), bound
        return bound

    def _validate_mask(self, mask: Mask) -> Mask:
        supported = self.card.supports
        if "arbitrary_mask" in supported:
            return mask
        for rule in mask.conjuncts:
            if rule.is_padding:
                kind = "padding"
            elif rule.is_segments:
                kind = "segments"
            elif rule.is_causal_only and self.causal:
                continue
            else:
                kind = "arbitrary_mask"
            if kind not in supported:
                takes = [name for name in ("padding", "segments") if name in supported]
                raise UnsupportedError(
                    f"{type(self).__name__} does not support mask={rule} ({kind}); it takes "
                    + (f"masks of the kinds {' and '.join(takes)}" if takes else "no mask")
                )
        return mask

    def _validate_context(self, x: Tensor, context: Tensor) -> int:
        """Return the number of keys."""
        self._require_capability("context")
        if context.dim() != 3 or context.shape[0] != x.shape[0] or context.shape[2] != self.embed_dim:
            raise ValueError(
                f"context must have shape ({x.shape[0]}, length, {self.embed_dim}), not {tuple(context.shape)}"
            )
        _check_device("context", context, x)
        if self.causal and context.shape[1] != x.shape[1]:
            raise ValueError(
                f"causal=True compares positions of one sequence, but x has {x.shape[1]} tokens and context "
                f"{context.shape[1]}; build the layer with causal=False, and to align the last query with the last "
                "key give mask=causal()"
            )
        return context.shape[1]

    def _validate_bias(self, x: Tensor, bias: Tensor, keys: int, start: int) -> Any:
        """Return the bias for the cached keys, with four axes."""
        self._require_capability("attn_bias")
        if not bias.is_floating_point():
            raise TypeError(
                f"attn_bias is added to the scores and must be a float tensor, not {bias.dtype}; "
                "to select the keys to attend to use mask="
            )
        _check_device("attn_bias", bias, x)
        wanted = (x.shape[0], self.num_heads, x.shape[1], start + keys)
        fits = zip(reversed(bias.shape), reversed(wanted), strict=False)
        if bias.dim() > 4 or any(have not in (1, want) for have, want in fits):
            raise ValueError(
                f"attn_bias has shape {tuple(bias.shape)}, which does not broadcast to "
                f"(batch, heads, queries, keys) = {wanted}"
            )
        return four_axes(bias[..., start:] if start and bias.dim() and bias.shape[-1] > 1 else bias)

    def _validate_cache(self, x: Tensor, mask: Mask | None, context: Tensor | None, cache: Any) -> None:
        """Refuse a cache with which the steps would differ from the full pass; make room in it for ``x``."""
        self._require_capability("cache")
        if not isinstance(cache, self.cache_type):
            raise TypeError(
                f"cache must be a {self.cache_type.__name__} (see make_cache), not a {type(cache).__name__}"
            )
        if context is not None:
            raise ValueError("a cache holds the keys of self-attention; give context= or cache=, not both")
        back, ahead = (None, None) if mask is None else mask.band
        if ahead != 0:
            raise ValueError(
                "a cache needs a causal mask: build the layer with causal=True, or combine the mask with causal()"
            )
        if isinstance(cache, KVCache) and cache.window is not None and (back is None or back >= cache.window):
            raise ValueError(
                f"the cache keeps {cache.window} tokens, but the mask reaches "
                f"{'all earlier keys' if back is None else f'{back} keys back'}; combine it with "
                f"sliding_window({cache.window})"
            )
        cache.admit(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        if f"{prefix}in_proj_weight" in state_dict:
            raise RuntimeError(
                f"this is a state dict of nn.MultiheadAttention, whose layer {type(self).__name__} cannot load it; "
                "convert the layer with attnlab.MultiAttention.from_torch(layer)"
            )
        rename_keys(state_dict, {prefix + old: prefix + new for old, new in self.renamed_keys.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; move it with {name}.to(...)")


def zeros_in_graph(out: Tensor) -> Tensor:
    """Zeros that keep the autograd graph of ``out``: there are no keys to attend to."""
    return out.masked_fill(out.new_ones((), dtype=torch.bool), 0.0)
