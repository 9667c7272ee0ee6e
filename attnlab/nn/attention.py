"""The contract that every mechanism keeps: ``(B, N, D)`` in, the same shape out.

Axes: B batch, N length (N_q queries, N_k keys), D embed_dim, H heads, d head_dim.

A mechanism subclasses `Attention` and implements three methods: `_forward` (the fast path), `_build_map` or
`_attention_weights` (the attention pattern) and `_apply_weights` (the output for given weights). The public methods
validate the arguments, combine ``causal`` with the mask, and zero the fully masked rows. What a mechanism does not
support raises `UnsupportedError`; nothing is silently ignored.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, Mask, as_mask, causal
from attnlab.nn.cache import KVCache, unchanged_on_error
from attnlab.nn.card import Card as Card
from attnlab.ops.attention_map import AttentionMap, DenseMap
from attnlab.ops.bias import four_axes
from attnlab.ops.packing import packed

P = ParamSpec("P")
T = TypeVar("T")


class UnsupportedError(TypeError):
    """The mechanism was asked for something that its card does not claim."""


class Attention(nn.Module):
    """The base of every mechanism.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: H; it must divide ``embed_dim`` where ``head_dim`` is not given.
        head_dim: d, the width of a head; ``embed_dim / num_heads`` where not given.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.

    Raises:
        TypeError: a width or a head count that is no whole number.
        ValueError: one that is not positive, heads that do not divide the width, a dropout outside [0, 1).
        UnsupportedError: ``causal`` for a mechanism that cannot be.
    """

    card: ClassVar[Card]

    supports_packing: ClassVar[bool] = False
    """Whether ``_forward`` computes each of several sequences in one row (a ``documents`` mask) for itself, so that a
    padded batch may be packed. What it gives must follow from the tokens and the mask alone."""

    linear_in_weights: ClassVar[bool] = True
    """Whether the output is linear in the weights, so that dropout on them is right on average."""

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
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.causal = causal
        self.dropout = dropout

    # The contract

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend.

        Args:
            x: the tokens, (B, N, D).
            mask: who may look at whom: a `Mask`, or a Boolean tensor (N_q, N_k), (B, N_q, N_k) or
                (B, H, N_q, N_k) in which True means *may look*. It is joined with ``causal``.
            attn_bias: added to the scores before the softmax, broadcastable to (B, H, N_q, N_k). Keep it finite: the
                mask decides which keys are attended to (`attnlab.masks.from_attn_mask` converts -inf).
            context: the sequence attended to, (B, M, D); without it x attends to itself. A layer with ``causal=True``
                takes a context as long as ``x`` alone, since positions of two sequences have no order; to align the
                last query with the last key, build it with ``causal=False`` and give ``mask=causal()``.
            cache: what was seen before, for decoding step by step: ``x`` is what is new; a mask and a bias speak of all
                keys. Needs ``causal``, or a mask that does not look ahead. A call that raises leaves it unchanged.

        Returns:
            (B, N, D), in the dtype of ``x``. A fully masked row is zero. What stands at positions that a padding mask
            (`padding`, `from_key_padding_mask`, `from_attention_mask`) leaves out, NaN included, reaches no other
            position and no gradient. What comes of a NaN anywhere else is not specified.

        Raises:
            UnsupportedError: for an argument that this mechanism does not take.
            ValueError: for a shape or a device that does not fit; a padding length above that of the keys (checked on
                a CPU, outside of a trace); ``causal=True`` with a context of another length; a cache that is full, of
                another batch, dtype or device, or that would not give what the full pass gives.
            TypeError: for a mask that is not Boolean.
        """
        with unchanged_on_error(cache):
            x, bound, given = self._validate(x, mask, attn_bias=attn_bias, context=context, cache=cache)
            return self._compute(x, bound, given)

    def _compute(self, x: Tensor, bound: BoundMask | None, given: dict[str, Any]) -> Tensor:
        """`forward`, once the arguments are checked."""
        if self.supports_packing and bound is not None and not given:
            row = packed(x, bound, self.num_heads)
            if row is not None:
                return row.run(self._forward, x)
        return self._blanked(self._forward(x, bound, **given), bound, given)

    @final
    def attention_weights(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B H N M"]:
        """Who looks at whom: (B, H, N_q, N_k), rows are queries. Takes and raises what `forward` does.

        Dropout is never in it: it is the map that the expected output is made with. For a part of a map that is too
        large to be written down, see `core`.
        """
        self._require_capability("weights")
        x, bound, given = self._validate(x, mask, attn_bias=attn_bias, context=context)
        return self._attention_weights(x, bound, **given)

    @final
    def attention_map(
        self,
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        attn_bias: Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> AttentionMap:
        """The map of `weights`, without writing it down: some rows and heads of it, its sums over blocks of keys, its
        entropy, its largest weights, or what it makes of other values. Takes and raises what `forward` does.
        """
        self._require_capability("weights")
        x, bound, given = self._validate(x, mask, attn_bias=attn_bias, context=context)
        return self._build_map(x, bound, **given)

    @final
    def apply_weights(
        self,
        weights: Float[Tensor, "B H N M"],
        x: Float[Tensor, "B N D"],
        *,
        mask: Mask | Tensor | None = None,
        context: Float[Tensor, "B M D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The output that these weights give: ``mix(weights(x, mask=m), x, mask=m)`` is ``forward(x, mask=m)``.

        Dropout aside, and for a bias or a context alike. Edit the weights in between (drop a head, flatten a row) to
        see what they contribute.

        Args:
            weights: (B, H, N, M), any numbers: that a row of them is zero has no special meaning.
            x: the tokens, (B, N, D).
            mask: what the weights were made with. Rows that it masks fully, together with ``causal``, are zero, and
                what it declares padding is taken as zero, as in `forward`; weights are not masked again.
            context: the sequence attended to, (B, M, D).

        Raises:
            UnsupportedError: for an argument that this mechanism does not take, or where it has no weights.
            ValueError: for weights, a mask or a context of a shape that does not fit.
        """
        self._require_capability("weights")
        x, bound, given = self._validate(x, mask, context=context)
        wanted = (x.shape[0], self.num_heads, x.shape[1], (x if context is None else context).shape[1])
        if weights.shape != wanted:
            raise ValueError(
                f"weights must have shape (batch, heads, queries, keys) = {wanted}, not {tuple(weights.shape)}"
            )
        return self._blanked(self._apply_weights(weights, x, **given), bound, given)

    @staticmethod
    def _blanked(out: Tensor, bound: BoundMask | None, given: dict[str, Any]) -> Tensor:
        """``out`` with zeros in fully masked rows; all of them where the context is empty."""
        if "context" in given and not given["context"].shape[1]:
            return out.masked_fill(out.new_ones((), dtype=torch.bool), 0.0)
        return out if bound is None else bound.zero_fully_masked_rows(out)

    def attention_pattern(self, length: int) -> Mask | None:
        """The keys that this mechanism looks at by itself, in a sequence of this length; None for all of them.

        It is joined with ``causal`` and with the mask that is given, so that none drops another.
        """
        return None

    # What a mechanism writes; ``mask`` already holds ``causal``, and only supported arguments arrive.

    def _forward(self, x: Tensor, mask: BoundMask | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no _forward")

    def _build_map(self, x: Tensor, mask: BoundMask | None, *args: Any, **given: Any) -> AttentionMap:
        if type(self)._attention_weights is Attention._attention_weights:
            raise NotImplementedError(
                f"{type(self).__name__} claims weights, but has no _build_map and no _attention_weights"
            )
        return DenseMap(self._attention_weights(x, mask, *args, **given))

    def _attention_weights(self, x: Tensor, mask: BoundMask | None, *args: Any, **given: Any) -> Tensor:
        return self._build_map(x, mask, *args, **given).materialize()

    def _apply_weights(self, weights: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} claims weights, but has no _apply_weights")

    def _drop_equivariance(self) -> None:
        """Take back what a mechanism with positions cannot claim: that order is nothing to it, and context.

        A place in another sequence is no distance from a place in this one.
        """
        left = tuple(word for word in self.card.supports if word not in ("equivariant", "context"))
        own: Any = self  # the card of this layer, not of its class
        own.card = replace(self.card, supports=left)

    def reset_parameters(self) -> None:
        """Draw every weight anew, as the constructor does; for a layer that was built on the meta device.

        Override it, and call it first, for a parameter or a buffer that the mechanism holds by itself.
        """
        _reset_children(self)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        renamed = {prefix + old: prefix + new for old, new in self.renamed_keys.items()}
        for key in list(state_dict) if renamed else ():
            state_dict[_current_key(key, renamed)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def scale_output(self, factor: float) -> None:
        """Scale the last projection at the start of training, as residual branches want it.

        Override it where that projection is not called ``output``.
        """
        output = self.get_submodule("output")
        with torch.no_grad():
            output.weight.mul_(factor)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """What a printed network shows of this layer."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, causal={self.causal}, dropout={self.dropout}"

    # How the contract is kept

    def supports(self, capability: str) -> bool:
        """Whether the card claims ``capability`` (see `attnlab.nn.card.CAPABILITIES`)."""
        return capability in self.card.supports

    def _require_capability(self, capability: str) -> None:
        if not self.supports(capability):
            raise UnsupportedError(
                f"{type(self).__name__} does not support {capability}; "
                f"it supports {', '.join(self.card.supports) or 'self-attention alone'}"
            )

    def _validate(
        self, x: Tensor, mask: Mask | Tensor | None, **optional: Any
    ) -> tuple[Tensor, BoundMask | None, dict[str, Any]]:
        """Check what was given, bind ``causal`` and the mask to this length, and make the padding harmless."""
        if x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"{type(self).__name__} takes x of shape (batch, length, {self.embed_dim}), not {tuple(x.shape)}"
            )
        given = {name: value for name, value in optional.items() if value is not None}
        for name in given:
            self._require_capability(name)
        keys = x.shape[1]
        if (context := given.get("context")) is not None:
            if context.dim() != 3 or context.shape[0] != x.shape[0] or context.shape[2] != self.embed_dim:
                raise ValueError(
                    f"context must have shape ({x.shape[0]}, length, {self.embed_dim}), not {tuple(context.shape)}"
                )
            _check_device("context", context, x)
            if self.causal and context.shape[1] != keys:
                raise ValueError(
                    f"causal=True compares positions of one sequence, but x has {keys} tokens and context "
                    f"{context.shape[1]}; build the layer with causal=False, and to align the last query with the last "
                    "key give mask=causal()"
                )
            keys = context.shape[1]
        if mask is not None:
            self._require_capability("mask")
            mask = as_mask(mask)
        own = self.attention_pattern(getattr(given.get("cache"), "num_seen", 0) + keys)
        for rule in (own, causal() if self.causal else None):
            if rule is not None:
                mask = rule if mask is None else rule & mask
        first, cache = 0, given.get("cache")
        if cache is not None:
            self._check_cache(x, mask, context, cache)
            keys, first = cache.num_cached + x.shape[1], cache.start
        elif mask is not None:  # with a cache, sequences may yet grow to the lengths given
            mask.check_lengths(keys)
        if (bias := given.get("attn_bias")) is not None:
            if not bias.is_floating_point():
                raise TypeError(
                    f"attn_bias is added to the scores and must be a float tensor, not {bias.dtype}; "
                    "to say who may look at whom use mask="
                )
            _check_device("attn_bias", bias, x)
            wanted = (x.shape[0], self.num_heads, x.shape[1], first + keys)
            fits = zip(reversed(bias.shape), reversed(wanted), strict=False)
            if bias.dim() > 4 or any(have not in (1, want) for have, want in fits):
                raise ValueError(
                    f"attn_bias has shape {tuple(bias.shape)}, which does not broadcast to "
                    f"(batch, heads, queries, keys) = {wanted}"
                )
            given["attn_bias"] = four_axes(bias[..., first:] if first and bias.dim() and bias.shape[-1] > 1 else bias)
        if mask is None:
            return x, None, given
        bound = mask.bind(x.shape[1], keys, shape=(x.shape[0], self.num_heads), first=first, device=x.device)
        if context is None:
            x = bound.zero_padding(x)
        else:
            given["context"] = bound.zero_padding(context)
        return x, bound, given

    @staticmethod
    def _check_cache(x: Tensor, mask: Mask | None, context: Tensor | None, cache: KVCache) -> None:
        """Refuse a cache with which the steps would differ from the full pass; make room in it for ``x``."""
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache is an attnlab.KVCache, not a {type(cache).__name__}")
        if context is not None:
            raise ValueError("a cache keeps what a sequence has seen of itself; give context= or cache=, not both")
        back, ahead = (None, None) if mask is None else mask.band
        if ahead != 0:
            raise ValueError(
                "with a cache nobody can look ahead: build the layer with causal=True, or join causal() to the mask"
            )
        if cache.window is not None and (back is None or back >= cache.window):
            raise ValueError(
                f"the cache keeps {cache.window} tokens, but the mask looks {'all the way' if back is None else back} "
                f"back; join sliding_window({cache.window}) to it"
            )
        cache.admit(x)


def _check_device(name: str, given: Tensor, x: Tensor) -> None:
    if given.device != x.device:
        raise ValueError(f"{name} lies on {given.device}, the tokens on {x.device}; move it with {name}.to(...)")


def accepts_emd_dim(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor take its width under the spelling ``emd_dim`` too.

    Raises:
        TypeError: when both spellings are given, or neither.
    """

    @functools.wraps(init)
    def wrapper(self: Attention, *args: Any, **options: Any) -> None:
        given = bool(args) or "embed_dim" in options
        if given and "emd_dim" in options:
            raise TypeError("embed_dim and emd_dim are two spellings of one width; give one of them, not both")
        if "emd_dim" in options:
            options["embed_dim"] = options.pop("emd_dim")
        elif not given:
            raise TypeError(f"{type(self).__name__} needs its width: give embed_dim= (emd_dim= is accepted too)")
        init(self, *args, **options)

    return wrapper


def renamed_options(**renamed: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Let a constructor take options under their old names for one version: ``@renamed_options(window="window_size")``.

    The command line and saved networks accept the old names too (`attnlab.catalog.registry.Entry.renamed`), which are
    read from the source text: write the names as literals.

    Args:
        renamed: the new name of each old one.

    Warns:
        DeprecationWarning: once per call site for an old name, with the new one.

    Raises:
        TypeError: when both names of an option are given.
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(init)
        def wrapper(*args: P.args, **options: P.kwargs) -> None:
            for old, new in renamed.items():
                if old not in options:
                    continue
                if new in options:
                    raise TypeError(f"{old} is the old name of {new}; give {new} alone")
                warnings.warn(f"the option {old} is now called {new}", DeprecationWarning, stacklevel=2)
                options[new] = options.pop(old)
            init(*args, **options)

        return wrapper

    return decorate


def make_linear(
    fan_in: int,
    fan_out: int,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """A projection whose weights start with variance 1/fan_in (a fixed 0.02 starves narrow layers)."""
    layer = nn.Linear(fan_in, fan_out, bias=bias, device=device, dtype=dtype)
    reset_linear(layer)
    return layer


def current_state(module: nn.Module, entries: Mapping[str, T], prefix: str = "") -> dict[str, T]:
    """``entries`` of a state dict of ``module``, with the keys that this version gives them.

    Args:
        module: a layer, or a network that holds layers.
        entries: anything by state-dict key.
        prefix: precedes the module's own keys.
    """
    renamed = {
        f"{prefix}{path}.{old}" if path else prefix + old: f"{prefix}{path}.{new}" if path else prefix + new
        for path, layer in module.named_modules()
        if isinstance(layer, Attention)
        for old, new in layer.renamed_keys.items()
    }
    return {_current_key(key, renamed): value for key, value in entries.items()}


def _current_key(key: str, renamed: Mapping[str, str]) -> str:
    """The key with the new name of the part that it starts with."""
    parts = key.split(".")
    starts = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((renamed[start] + key[len(start) :] for start in starts if start in renamed), key)


def _reset_children(module: nn.Module) -> None:
    for child in module.children():
        if isinstance(child, nn.Linear):
            reset_linear(child)
        elif callable(reset := getattr(child, "reset_parameters", None)):
            reset()
        else:
            _reset_children(child)


def reset_linear(layer: nn.Linear) -> None:
    """Draw the weights anew, with variance 1/fan_in; the bias is zero."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def copy_weights(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Write these weights into a projection; a bias of None leaves its own."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


def check_positive_int(name: str, value: int) -> int:
    """``value``, a whole number of at least 1; else TypeError or ValueError with its name."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def divisors_near(number: int, wanted: int, count: int = 3) -> list[int]:
    """The ``count`` divisors of ``number`` nearest to ``wanted`` (by ratio), in order."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return sorted(sorted(divisors, key=lambda n: abs(math.log(n / wanted)))[:count])


def join_or(numbers: list[int]) -> str:
    """``[4, 5, 10]`` as ``4, 5 or 10``."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last
