"""Our mechanisms in the layers of ``torch.nn``: `nn.TransformerEncoder`, `nn.TransformerDecoder`, `nn.Transformer`.

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


class TorchMHAAdapter(nn.Module):
    """A mechanism that is asked as `nn.MultiheadAttention` is.

    Args:
        attention: what computes.
        batch_first: whether tokens come as (B, N, D), not (N, B, D).
    """

    in_proj_bias = None
    """Read by `nn.TransformerEncoderLayer`, whose fast path in eval would compute without asking this module."""

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
        """Attend, as `nn.MultiheadAttention.forward` says it, but for what a row that may look at nothing gives: zeros.

        Args:
            query: (B, N, D), (N, B, D) without ``batch_first``, or (N, D).
            key: ``query`` itself, or another sequence.
            value: ``key`` itself.
            key_padding_mask: (B, M) or (M,): True or -inf means *ignore*; other numbers are added to the scores.
            need_weights: whether to return weights too. Dropout is never in them.
            attn_mask: (N, M) or (B * H, N, M): True or -inf means *may not look*; other numbers are added.
            average_attn_weights: whether the weights are (B, N, M), the mean over the heads, or (B, H, N, M).
            is_causal: says that ``attn_mask`` is causal; it is read all the same.

        Raises:
            ValueError: for keys that are not the values; ``is_causal`` with a mask that is not, or without one.
            UnsupportedError: for a mask, numbers to add, another sequence or weights that the mechanism does not take.
        """
        if value is not key:
            raise ValueError("keys and values come from one sequence here: give the same tensor for both")
        if query.is_nested:
            raise ValueError("a nested tensor is not taken; give a padded one and src_key_padding_mask")
        context = None if key is query else self._batched(key)
        x, unbatched = self._batched(query), query.dim() == 2
        mask, bias = self._rule(x, x if context is None else context, attn_mask, key_padding_mask, is_causal)
        asked: dict[str, Any] = {"mask": mask, "attn_bias": bias, "context": context}
        out = self.attention(x, **asked)
        out = out.squeeze(0) if unbatched else out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = self.attention.attention_weights(x, **asked)
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights.squeeze(0) if unbatched else weights

    def _batched(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0) if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _rule(
        self, x: Tensor, keys: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool
    ) -> tuple[Mask | None, Tensor | None]:
        """Who may look at whom, and what is added to the scores."""
        rule: Mask | None = None
        bias: Tensor | None = None
        if attn_mask is None and is_causal:  # in this order: a compiled encoder gives a symbol for is_causal
            raise ValueError(
                "is_causal=True says something of attn_mask, and there is none; "
                "give nn.Transformer.generate_square_subsequent_mask(length)"
            )
        if attn_mask is not None:
            forbidden, bias = _split(attn_mask)
            triangle = _is_triangle(forbidden) if _may_read() else None
            if triangle is False and is_causal:
                raise ValueError("is_causal=True, but attn_mask is not causal; leave is_causal out, or mend the mask")
            rule = causal() if triangle else from_attn_mask(forbidden, self.attention.num_heads)
            bias = bias.unflatten(0, (len(x), -1)) if bias is not None and bias.dim() == 3 else bias
        if key_padding_mask is not None:
            ignored, added = _split(key_padding_mask.view(len(x), keys.shape[1]))
            padding = from_key_padding_mask(ignored)
            rule = padding if rule is None else rule & padding
            if added is not None:
                bias = added[:, None, None] if bias is None else bias + added[:, None, None]
        return rule, bias


def from_torch(model: nn.Module, make: Callable[[nn.MultiheadAttention], Attention] | None = None) -> nn.Module:
    """A copy of ``model`` in which every `nn.MultiheadAttention` computes with ours, with the same weights.

    The copy gives what the original gives, in train and in eval mode, with ``mask``, ``src_key_padding_mask`` and
    ``is_causal``; PyTorch's eval fast path, which would bypass our layers, is left out. What is frozen stays so.

    Args:
        model: an `nn.TransformerEncoder`, or anything that holds an `nn.MultiheadAttention`.
        make: what makes ours of theirs, `MultiAttention.from_torch` by default; another one puts another mechanism in
            its place. Tokens are transposed for it where ``batch_first`` is False.

    Raises:
        ValueError: where there is none, or one that cannot be said exactly, with its name in the model.
    """

    def swap(theirs: nn.Module) -> nn.Module:
        assert isinstance(theirs, nn.MultiheadAttention)
        if type(theirs) is not nn.MultiheadAttention:
            raise ValueError(f"{type(theirs).__name__} extends nn.MultiheadAttention, and may compute something else")
        layer = MultiAttention.from_torch(theirs, batch_first=True) if make is None else make(theirs)
        ours = TorchMHAAdapter(layer, batch_first=theirs.batch_first)
        return ours.requires_grad_(any(p.requires_grad for p in theirs.parameters()))

    return _exchanged(model, nn.MultiheadAttention, swap)


def to_torch(model: nn.Module) -> nn.Module:
    """The way back from `from_torch`: a copy of ``model`` with `nn.MultiheadAttention` in all its places.

    Raises:
        ValueError: where there is nothing to convert, or what `nn.MultiheadAttention` cannot say: another mechanism,
            positions, a layer that is causal by itself.
    """

    def swap(ours: nn.Module) -> nn.Module:
        assert isinstance(ours, TorchMHAAdapter)
        attention = ours.attention
        if not isinstance(attention, MultiAttention):
            raise ValueError(f"nn.MultiheadAttention cannot say what {type(attention).__name__} computes")
        if attention.causal:
            raise ValueError("nn.MultiheadAttention is told by attn_mask to be causal, and this layer is by itself")
        theirs = attention.to_torch()
        theirs.batch_first = ours.batch_first
        return theirs.requires_grad_(any(p.requires_grad for p in attention.parameters()))

    return _exchanged(model, TorchMHAAdapter, swap)


def _exchanged(model: nn.Module, kind: type[nn.Module], swap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of ``model`` with every module of this kind swapped."""
    if isinstance(model, kind):
        return swap(model)
    model = deepcopy(model)
    found = {module: name for name, module in model.named_modules() if isinstance(module, kind)}
    if not found:
        raise ValueError(f"there is no {kind.__name__} in {type(model).__name__}")
    swapped: dict[nn.Module, nn.Module] = {}
    for module, name in found.items():
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
    """Whether PyTorch would turn padded batches into nested tensors for these layers, as its constructor decides it."""
    first = encoder.layers[0]
    if isinstance(getattr(first, "self_attn", None), TorchMHAAdapter):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says why not
        return nn.TransformerEncoder(first, 0, enable_nested_tensor=encoder.enable_nested_tensor).use_nested_tensor


def _split(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is forbidden (True), and what is added to the other scores; None where that is nothing."""
    if not mask.is_floating_point():
        return mask, None
    forbidden = mask == -torch.inf
    added = mask.masked_fill(forbidden, 0.0)
    plain = _may_read() and not mask.requires_grad and not bool(added.any())
    return forbidden, None if plain else added


def _is_triangle(forbidden: Tensor) -> bool:
    """Whether exactly what lies ahead is forbidden."""
    if forbidden.dim() != 2 or forbidden.shape[0] != forbidden.shape[1]:
        return False
    return torch.equal(forbidden, torch.ones_like(forbidden).triu(1))


def _may_read() -> bool:
    """Whether a decision may depend on what a tensor holds."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
