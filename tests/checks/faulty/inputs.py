"""Errors in shapes, dtypes and strides, in the validation of arguments, and in the constructor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from plain import Plain, fails
from torch import Tensor, nn


@fails("output_shape", replaces="forward")
def squeezes_the_batch(self: Plain, x: Tensor, **options: Any) -> Tensor:
    return Plain.forward(self, x, **options).squeeze(0)


@fails("output_shape", replaces="after")
def needs_even_lengths(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out.unflatten(1, (-1, 2)).flatten(1, 2)


@fails("empty_input", replaces="after")
def infers_a_size(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Leaves a size to be inferred, which is ambiguous for a tensor without values."""
    return out.reshape(x.shape[0], x.shape[1], -1)


@fails("output_dtype", replaces="forward")
def returns_float32(self: Plain, x: Tensor, **options: Any) -> Tensor:
    return Plain.forward(self, x, **options).float()


@fails("bfloat16_autocast", replaces="attend")
def leaves_autocast(self: Plain, weights: Tensor, v: Tensor) -> Tensor:
    heads = (self.drop(weights) @ v).transpose(1, 2).flatten(2)
    with torch.autocast(v.device.type, enabled=False):
        return self.output(heads)


@fails("non_contiguous_input", replaces="before")
def assumes_contiguous_tokens(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Reads the tokens as if they were contiguous."""
    return x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1))


# Arguments


@fails("unsupported_arguments_raise")
class IgnoresTheCache(Plain):
    """Accepts a cache, which its card does not support, and ignores it."""

    card = replace(Plain.card, supports=tuple(name for name in Plain.card.supports if name != "cache"))

    def forward(self, x: Tensor, *, cache: Any = None, **options: Any) -> Tensor:
        return super().forward(x, **options)


@fails("float_mask_raises", replaces="forward")
def converts_float_masks(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    return Plain.forward(self, x, mask=mask.bool() if isinstance(mask, Tensor) else mask, **options)


@fails("mismatched_shapes_raise", replaces="forward")
def truncates_wide_tokens(self: Plain, x: Tensor, **options: Any) -> Tensor:
    return Plain.forward(self, x[..., : self.embed_dim], **options)


@fails("mask_matches_boolean_tensor", replaces="forward")
def inverts_tensor_masks(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    """Reads a tensor as `nn.MultiheadAttention` does, and a Mask as attnlab does."""
    return Plain.forward(self, x, mask=~mask if isinstance(mask, Tensor) else mask, **options)


@fails("causal_context_length_mismatch_raises", replaces="forward")
def drops_causal_with_context(self: Plain, x: Tensor, *, context: Any = None, **options: Any) -> Tensor:
    """Attends to a context of any length without the causal mask."""
    is_causal, self.causal = self.causal, self.causal and context is None
    try:
        return Plain.forward(self, x, context=context, **options)
    finally:
        self.causal = is_causal


@fails("integer_mask_raises_or_is_boolean", replaces="forward")
def inverts_byte_masks(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    """Reads 1 in a uint8 mask as *masked*, as older versions of PyTorch did."""
    is_bytes = isinstance(mask, Tensor) and mask.dtype == torch.uint8
    return Plain.forward(self, x, mask=mask == 0 if is_bytes else mask, **options)


@fails("attn_bias_broadcasts", replaces="forward")
def ignores_small_biases(self: Plain, x: Tensor, *, attn_bias: Any = None, **options: Any) -> Tensor:
    is_used = attn_bias is not None and attn_bias.dim() == 4
    return Plain.forward(self, x, attn_bias=attn_bias if is_used else None, **options)


@fails("attn_bias_broadcasts", replaces="forward")
def ignores_biases_of_other_dtypes(self: Plain, x: Tensor, *, attn_bias: Any = None, **options: Any) -> Tensor:
    is_used = attn_bias is not None and attn_bias.dtype == x.dtype
    return Plain.forward(self, x, attn_bias=attn_bias if is_used else None, **options)


# Construction


@fails("meta_device_initialization")
class ComputesABuffer(Plain):
    """Computes a constant in the constructor and keeps it out of the state_dict."""

    def __init__(self, embed_dim: int, *, device: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, device=device, **options)
        self.register_buffer("gain", torch.full((1,), 2.0, device=device), persistent=False)

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x * self.gain.to(x)


@fails("meta_device_initialization", replaces="__init__")
def reads_a_parameter_in_the_constructor(self: Plain, embed_dim: int, **options: Any) -> None:
    Plain.__init__(self, embed_dim, **options)
    self.gain = float(self.query.weight.abs().max())


@fails("reset_parameters_sets_all")
class DoesNotResetAParameter(Plain):
    """Resets the projections, but not a parameter of its own."""

    def __init__(self, embed_dim: int, *, device: Any = None, dtype: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, device=device, dtype=dtype, **options)
        self.gain = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return self.gain * x


@fails("reset_parameters_sets_all", replaces="reset_parameters")
def resets_to_a_constant(self: Plain) -> None:
    """Sets every parameter to the same value, whatever the seed."""
    for parameter in self.parameters():
        nn.init.constant_(parameter, 0.1)


@fails("device_and_dtype_arguments", replaces="__init__")
def ignores_the_dtype(self: Plain, embed_dim: int, *, dtype: Any = None, **options: Any) -> None:
    Plain.__init__(self, embed_dim, **options)


@fails("device_and_dtype_arguments", replaces="__init__")
def ignores_the_device(self: Plain, embed_dim: int, *, device: Any = None, **options: Any) -> None:
    Plain.__init__(self, embed_dim, **options)
