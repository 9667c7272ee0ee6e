"""Checks of constructor and call arguments, with errors that name the replacement of a PyTorch argument."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from torch import Tensor, nn

from attnlab.utils.errors import nearest
from attnlab.utils.tracing import autocast_dtype

P = ParamSpec("P")

ARGUMENTS = ("mask", "attn_bias", "context", "cache")
"""The keyword arguments of every layer."""

REPLACEMENTS = {
    "key_padding_mask": "mask=attnlab.masks.from_key_padding_mask(key_padding_mask)",
    "attn_mask": "mask=attnlab.masks.from_attn_mask(attn_mask), or attn_bias= for a float mask",
    "attention_mask": "mask=attnlab.masks.from_attention_mask(attention_mask)",
    "need_weights": "layer.attention_weights(x)",
    "average_attn_weights": "layer.attention_weights(x).mean(1)",
    "is_causal": "the constructor's causal=True, or mask=attnlab.masks.causal()",
    "bias": "attn_bias=",
    "past_key_values": "cache=layer.make_cache(capacity)",
    "use_cache": "cache=layer.make_cache(capacity)",
}
"""What replaces the call arguments of other libraries."""

CONSTRUCTOR_REPLACEMENTS = {
    "batch_first": "leave it out: inputs are always (batch, length, embed_dim)",
    "kdim": "keys and values have the width embed_dim; project the context first",
    "vdim": "keys and values have the width embed_dim; project the context first",
    "add_bias_kv": "there is no bias_kv",
    "add_zero_attn": "see SinkAttention(sink='zero')",
}
"""What replaces the constructor arguments of nn.MultiheadAttention."""


def accepts_emd_dim(init: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor accept ``emd_dim`` as another spelling of ``embed_dim``; type checkers see ``embed_dim``.

    Raises:
        TypeError: if both spellings are given, or neither.
    """

    @functools.wraps(init)
    def wrapper(*args: P.args, **options: P.kwargs) -> None:
        has_embed_dim = len(args) > 1 or "embed_dim" in options
        if has_embed_dim and "emd_dim" in options:
            raise TypeError("embed_dim and emd_dim are two spellings of one option; give one of them, not both")
        if "emd_dim" in options:
            options["embed_dim"] = options.pop("emd_dim")
        elif not has_embed_dim:
            raise TypeError(f"{type(args[0]).__name__} needs embed_dim= (or emd_dim=), the width of a token")
        init(*args, **options)

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


def check_positive_int(name: str, value: int, least: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``least``.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def divisors_near(number: int, wanted: int, count: int = 3) -> list[int]:
    """Return the ``count`` divisors of ``number`` nearest to ``wanted`` by ratio, in ascending order."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return sorted(sorted(divisors, key=lambda n: abs(math.log(n / wanted)))[:count])


def join_or(numbers: list[int]) -> str:
    """``[4, 5, 10]`` as ``4, 5 or 10``."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def explain_unknown_arguments(name: str, positional: tuple[Any, ...], keywords: Mapping[str, Any]) -> TypeError:
    """Return the error of a class for arguments that its ``forward`` does not have."""
    if positional:
        return TypeError(
            f"{name} takes one positional argument, x: layer(x) in place of layer(query, key, value), "
            "layer(x, context=y) to attend to another sequence; in a PyTorch layer use "
            "attnlab.integrations.pytorch.TorchMHAAdapter"
        )
    keyword = next(iter(keywords))
    if keyword in REPLACEMENTS:
        return TypeError(f"{name} has no argument {keyword}=; use {REPLACEMENTS[keyword]}")
    near = nearest(keyword, ARGUMENTS)
    hint = f"did you mean {near}?" if near else f"it has {', '.join(ARGUMENTS)}"
    return TypeError(f"{name} has no argument {keyword}=; {hint}")


def explain_input(layer: nn.Module, x: Any, context: Any, error: Exception) -> None:
    """Explain ``error`` if it comes from the dtype or the device of the input; called only after a failure.

    Raises:
        TypeError: for another dtype than the parameters.
        ValueError: for another device than the parameters.
    """
    parameter = next((p for p in layer.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return
    name, dtype = type(layer).__name__, parameter.dtype
    for what, tensor in (("x", x), ("context", context)):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device != parameter.device:
            hint = "allocate the layer with to_empty()" if parameter.is_meta else f"use {what}.to('{parameter.device}')"
            raise ValueError(
                f"{what} is on {tensor.device}, the parameters of {name} on {parameter.device}; {hint}"
            ) from error
        if not tensor.is_floating_point():
            raise TypeError(
                f"{what} must hold float tokens (batch, length, embed_dim), not {tensor.dtype}; embed indices first, "
                f"or convert it with {what}.to({dtype})"
            ) from error
        if tensor.dtype != dtype and autocast_dtype(tensor.device) is None:
            raise TypeError(
                f"{what} is {tensor.dtype}, the parameters of {name} are {dtype}; convert it with "
                f"{what}.to({dtype}), or the layer with layer.to({tensor.dtype})"
            ) from error
