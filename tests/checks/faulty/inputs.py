"""Errors in shapes, dtypes and strides, in the validation of arguments, and in the constructor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from plain import Plain
from torch import Tensor, nn

from faulty._registry import fails


@fails("output_shape")
class SqueezesTheBatch(Plain):
    """Drops the batch axis of a single item."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options).squeeze(0)


@fails("output_shape")
class NeedsEvenLengths(Plain):
    """Reshapes the sequence into pairs."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out.unflatten(1, (-1, 2)).flatten(1, 2)


@fails("empty_input")
class InfersASize(Plain):
    """Leaves a size to be inferred, which is ambiguous for a tensor without values."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out.reshape(x.shape[0], x.shape[1], -1)


@fails("output_dtype")
class ReturnsFloat32(Plain):
    """Returns float32 for every input."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options).float()


@fails("bfloat16_autocast")
class LeavesAutocast(Plain):
    """Computes the last projection outside of autocast."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        heads = (self.drop(weights) @ v).transpose(1, 2).flatten(2)
        with torch.autocast(v.device.type, enabled=False):
            return self.output(heads)


@fails("non_contiguous_input")
class AssumesContiguousTokens(Plain):
    """Reads the tokens as if they were contiguous."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1))


# Arguments


@fails("unsupported_arguments_raise")
class IgnoresTheCache(Plain):
    """Accepts a cache, which its card does not support, and ignores it."""

    card = replace(Plain.card, supports=tuple(name for name in Plain.card.supports if name != "cache"))

    def forward(self, x: Tensor, *, cache: Any = None, **options: Any) -> Tensor:
        return super().forward(x, **options)


@fails("float_mask_raises")
class ConvertsFloatMasks(Plain):
    """Converts a mask of any dtype to Boolean."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        return super().forward(x, mask=mask.bool() if isinstance(mask, Tensor) else mask, **options)


@fails("mismatched_shapes_raise")
class TruncatesWideTokens(Plain):
    """Discards channels beyond embed_dim."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x[..., : self.embed_dim], **options)


@fails("mask_matches_boolean_tensor")
class InvertsTensorMasks(Plain):
    """Reads a tensor as `nn.MultiheadAttention` does, and a Mask as attnlab does."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        return super().forward(x, mask=~mask if isinstance(mask, Tensor) else mask, **options)


@fails("causal_context_length_mismatch_raises")
class DropsCausalWithContext(Plain):
    """Attends to a context of any length without the causal mask."""

    def forward(self, x: Tensor, *, context: Any = None, **options: Any) -> Tensor:
        is_causal, self.causal = self.causal, self.causal and context is None
        try:
            return super().forward(x, context=context, **options)
        finally:
            self.causal = is_causal


@fails("integer_mask_raises_or_is_boolean")
class InvertsByteMasks(Plain):
    """Reads 1 in a uint8 mask as *masked*, as older versions of PyTorch did."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        is_bytes = isinstance(mask, Tensor) and mask.dtype == torch.uint8
        return super().forward(x, mask=mask == 0 if is_bytes else mask, **options)


@fails("attn_bias_broadcasts")
class IgnoresSmallBiases(Plain):
    """Adds a bias only if it has four axes."""

    def forward(self, x: Tensor, *, attn_bias: Any = None, **options: Any) -> Tensor:
        is_used = attn_bias is not None and attn_bias.dim() == 4
        return super().forward(x, attn_bias=attn_bias if is_used else None, **options)


@fails("attn_bias_broadcasts")
class IgnoresBiasesOfOtherDtypes(Plain):
    """Adds a bias only if it has the dtype of the tokens."""

    def forward(self, x: Tensor, *, attn_bias: Any = None, **options: Any) -> Tensor:
        is_used = attn_bias is not None and attn_bias.dtype == x.dtype
        return super().forward(x, attn_bias=attn_bias if is_used else None, **options)


# Construction


@fails("meta_device_initialization")
class ComputesABuffer(Plain):
    """Computes a constant in the constructor and keeps it out of the state_dict."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, device: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, device=device, **options)
        self.register_buffer("gain", torch.full((1,), 2.0, device=device), persistent=False)

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x * self.gain.to(x)


@fails("meta_device_initialization")
class ReadsAParameterInTheConstructor(Plain):
    """Reads the value of a parameter in the constructor."""

    def __init__(self, embed_dim: int, num_heads: int = 3, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.gain = float(self.query.weight.abs().max())


@fails("reset_parameters_sets_all")
class DoesNotResetAParameter(Plain):
    """Resets the projections, but not a parameter of its own."""

    def __init__(
        self, embed_dim: int, num_heads: int = 3, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype, **options)
        self.gain = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return self.gain * x


@fails("reset_parameters_sets_all")
class ResetsToAConstant(Plain):
    """Sets every parameter to the same value, whatever the seed."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


@fails("device_and_dtype_arguments")
class IgnoresTheDtype(Plain):
    """Accepts a dtype and builds in the default one."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, dtype: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)


@fails("device_and_dtype_arguments")
class IgnoresTheDevice(Plain):
    """Accepts a device and builds on the default one."""

    def __init__(self, embed_dim: int, num_heads: int = 3, *, device: Any = None, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
