"""Mechanisms inside the layers of ``torch.nn``: `nn.TransformerEncoder`, `nn.TransformerDecoder`, `nn.Transformer`.

Axes: B batch, N queries, M keys, D embed_dim, H heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.masks import Mask, causal, from_attn_mask, from_key_padding_mask
from attnlab.models.multihead import MultiAttention  # type: ignore[import-not-found]
from attnlab.nn.attention import Attention
from attnlab.utils.tracing import can_keep_tensors


class TorchMHAAdapter(nn.Module):
    """A mechanism with the interface of `nn.MultiheadAttention`.

    Args:
        attention: the mechanism.
        batch_first: whether inputs have the shape (B, N, D), not (N, B, D).
    """

    # Disables the fast path of nn.TransformerEncoderLayer, which would not call this module in eval mode:
    # https://github.com/pytorch/pytorch/issues/128413
    in_proj_bias = None

    def __init__(self, attention: Attention, *, batch_first: bool) -> None:
        super().__init__()
        self.attention, self.batch_first = attention, batch_first
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute what `nn.MultiheadAttention.forward` computes; a fully masked row is zero, not NaN.

        Args:
            query: (B, N, D), (N, B, D) without ``batch_first``, or (N, D).
            key: the same tensor as ``query``, or another sequence.
            value: the same tensor as ``key``.
            key_padding_mask: (B, M) or (M,): True or -inf means *ignore*; other values are added to the scores.
            need_weights: whether to return the attention weights too; they are those before dropout.
            attn_mask: (N, M) or (B * H, N, M): True or -inf means *do not attend*; other values are added.
            average_attn_weights: whether to return the mean over the heads, (B, N, M), in place of (B, H, N, M).
            is_causal: a hint that ``attn_mask`` is causal; the mask is applied either way.

        Raises:
            ValueError: if ``value`` is not ``key``; for ``is_causal`` without a causal mask.
            UnsupportedError: for an argument that the mechanism does not support.
        """
        if value is not key:
            raise ValueError("key and value must be the same tensor: both are projected from one sequence")
        if query.is_nested:
            raise ValueError("nested tensors are not supported; give a padded tensor and src_key_padding_mask")
        context = None if key is query else self._batched(key)
        x, unbatched = self._batched(query), query.dim() == 2
        mask, bias = self._convert_masks(x, x if context is None else context, attn_mask, key_padding_mask, is_causal)
        options: dict[str, Any] = {"mask": mask, "attn_bias": bias, "context": context}
        out = self.attention(x, **options)
        out = out.squeeze(0) if unbatched else out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = self.attention.attention_weights(x, **options)
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights.squeeze(0) if unbatched else weights

    def _batched(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _convert_masks(
        self, x: Tensor, keys: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool
    ) -> tuple[Mask | None, Tensor | None]:
        """Convert both masks to one mask and what is added to the scores."""
        rule: Mask | None = None
        bias: Tensor | None = None
        if attn_mask is None and is_causal:  # in this order: is_causal is symbolic in a compiled encoder
            raise ValueError(
                "is_causal=True is a hint about attn_mask, which is missing; "
                "give nn.Transformer.generate_square_subsequent_mask(length)"
            )
        if attn_mask is not None:
            masked, bias = _split(attn_mask)
            square = masked.dim() == 2 and masked.shape[0] == masked.shape[1]
            readable = can_keep_tensors()
            causal_mask = readable and square and torch.equal(masked, torch.ones_like(masked).triu(1))
            if readable and not causal_mask and is_causal:
                raise ValueError("is_causal=True, but attn_mask is not causal; omit is_causal, or correct the mask")
            rule = causal() if causal_mask else from_attn_mask(masked, self.attention.num_heads)
            bias = bias.unflatten(0, (len(x), -1)) if bias is not None and bias.dim() == 3 else bias
        if key_padding_mask is not None:
            ignored, added = _split(key_padding_mask.view(len(x), keys.shape[1]))
            padding = from_key_padding_mask(ignored)
            rule = padding if rule is None else rule & padding
            if added is not None:
                bias = added[:, None, None] if bias is None else bias + added[:, None, None]
        return rule, bias


AsMultihead = TorchMHAAdapter  # its name in version 0.1


def from_torch(model: nn.Module, make: Callable[[nn.MultiheadAttention], Attention] | None = None) -> nn.Module:
    """Return a copy of ``model`` with every `nn.MultiheadAttention` replaced by a mechanism with the same parameters.

    The copy computes the same outputs in train and eval mode, with ``mask``, ``src_key_padding_mask`` and
    ``is_causal``. PyTorch's eval fast path, which would bypass the mechanism, is disabled. Frozen layers stay frozen.

    Args:
        model: an `nn.TransformerEncoder`, or any module that contains an `nn.MultiheadAttention`.
        make: returns the replacement of a layer; `MultiAttention.from_torch` by default. Inputs are transposed for it
            if ``batch_first`` is False.

    Raises:
        ValueError: if there is no such layer, or one that cannot be converted exactly; the message contains its name.
    """

    def swap(theirs: nn.Module) -> nn.Module:
        assert isinstance(theirs, nn.MultiheadAttention)
        if type(theirs) is not nn.MultiheadAttention:
            raise ValueError(
                f"{type(theirs).__name__} is a subclass of nn.MultiheadAttention and may compute something else"
            )
        layer = MultiAttention.from_torch(theirs, batch_first=True) if make is None else make(theirs)
        ours = TorchMHAAdapter(layer, batch_first=theirs.batch_first)
        return ours.requires_grad_(any(p.requires_grad for p in theirs.parameters()))

    return _replaced(model, nn.MultiheadAttention, swap)


def to_torch(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with `nn.MultiheadAttention` in every place: the inverse of `from_torch`.

    Raises:
        ValueError: if there is nothing to convert, or something that `nn.MultiheadAttention` cannot represent: another
            mechanism, positions, a layer with ``causal=True``.
    """

    def swap(ours: nn.Module) -> nn.Module:
        assert isinstance(ours, TorchMHAAdapter)
        attention = ours.attention
        if not isinstance(attention, MultiAttention):
            raise ValueError(f"nn.MultiheadAttention cannot represent {type(attention).__name__}")
        if attention.causal:
            raise ValueError(
                "nn.MultiheadAttention has no causal=True; build the layer with causal=False and pass attn_mask"
            )
        theirs = attention.to_torch()
        theirs.batch_first = ours.batch_first
        return theirs.requires_grad_(any(p.requires_grad for p in attention.parameters()))

    return _replaced(model, TorchMHAAdapter, swap)


def _replaced(model: nn.Module, kind: type[nn.Module], swap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a copy of ``model`` with every module of this kind replaced by ``swap``."""
    if isinstance(model, kind):
        return swap(model)
    model = deepcopy(model)
    matches = {module: name for name, module in model.named_modules() if isinstance(module, kind)}
    if not matches:
        raise ValueError(f"there is no {kind.__name__} in {type(model).__name__}")
    swapped: dict[nn.Module, nn.Module] = {}
    for module, name in matches.items():
        try:
            swapped[module] = swap(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in swapped:
                setattr(parent, name, swapped[child])
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = _takes_nested(encoder)
    return model


def _takes_nested(encoder: nn.TransformerEncoder) -> bool:
    """Whether PyTorch converts padded batches to nested tensors for these layers, as the constructor decides."""
    first = encoder.layers[0]
    if isinstance(getattr(first, "self_attn", None), TorchMHAAdapter):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the reason why it does not
        return nn.TransformerEncoder(first, 0, enable_nested_tensor=encoder.enable_nested_tensor).use_nested_tensor


def _split(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return where the mask forbids attention (True), and what it adds to the other scores, or None."""
    if not mask.is_floating_point():
        return mask, None
    masked = mask == -torch.inf
    added = mask.masked_fill(masked, 0.0)
    plain = can_keep_tensors() and not mask.requires_grad and not bool(added.any())
    return masked, None if plain else added
