"""Our softmax attention as an attention implementation of transformers.

A model calls `lazy_mask` once per forward pass and `attention_forward` in every layer. The mask stays a rule and is not
materialized, so that masked blocks can be skipped.

Axes: B batch, H heads, H_kv heads of keys, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attnlab import masks
from attnlab.masks import BoundMask, Mask, causal, from_key_padding_mask, from_tensor
from attnlab.masks.rule import Band
from attnlab.ops.softmax import SoftmaxMap

modeling: Any = import_module("transformers.modeling_utils")
masking: Any = import_module("transformers.masking_utils")
generation: Any = import_module("transformers.generation.utils")
capturing: Any = import_module("transformers.utils.output_capturing")

IGNORED_ARGUMENTS = {
    "cache_position",
    "deterministic",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "logits_to_keep",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Arguments that models pass to all of their submodules and that do not affect attention; others are refused."""


def register(name: str = "attnlab") -> None:
    """Register this library with transformers, for ``from_pretrained(..., attn_implementation="attnlab")``.

    Results match the ``eager`` implementation of transformers for encoders and decoders, grouped key/value heads,
    padding on either side, sliding windows, caches and ``generate``, soft caps, attention sinks, position biases, and
    dropout. Two things differ: a fully masked row (a padded query under a causal mask) is zero, and the attention
    weights of ``output_attentions=True`` are those before dropout. What is not supported raises an error. Building a
    model that computes its attention itself (BLOOM, Falcon) with this name raises ValueError.

    Args:
        name: the name of the implementation.
    """
    is_registered = name in modeling.ALL_ATTENTION_FUNCTIONS.valid_keys()
    modeling.AttentionInterface.register(name, attention_forward)
    masking.AttentionMaskInterface.register(name, lazy_mask)
    if is_registered:
        return
    check = modeling.PreTrainedModel.get_correct_attn_implementation

    @functools.wraps(check)
    def checked(model: Any, requested_attention: str | None, *args: Any, **options: Any) -> str:
        if requested_attention == name:
            _refuse_without_interface(type(model), name)
        return str(check(model, requested_attention, *args, **options))

    # Registered names are not checked there against what a model supports, as "sdpa" is; see
    # https://github.com/huggingface/transformers/pull/36889
    modeling.PreTrainedModel.get_correct_attn_implementation = checked
    if not hasattr(prepare := generation.GenerationMixin.prepare_inputs_for_generation, "_returns_tensors"):
        generation.GenerationMixin.prepare_inputs_for_generation = _with_tensors(prepare)


def _with_tensors(prepare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap ``prepare_inputs_for_generation`` to return masks as tensors, which a compiled or exported step needs."""

    def matrix(mask: Any) -> Any:
        if isinstance(mask, dict):
            return {key: matrix(value) for key, value in mask.items()}
        return mask.tensor() if isinstance(mask, LazyMask) else mask

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(*args, **kwargs)
        masks = {key: matrix(value) for key, value in inputs.items() if key.endswith("attention_mask")}
        return {**inputs, **masks}

    prepared._returns_tensors = True  # type: ignore[attr-defined]
    return prepared


def _refuse_without_interface(model: type, name: str) -> None:
    """Raise for a model whose attention does not go through transformers' AttentionInterface."""
    # transformers reads the source of the module; a class defined in a notebook has none, but its base class does.
    owner: Any = next(base for base in model.__mro__ if hasattr(sys.modules.get(base.__module__), "__file__"))
    tables = [table for key, table in vars(sys.modules[owner.__module__]).items() if key.endswith("ATTENTION_CLASSES")]
    if not owner._can_set_attn_implementation() or any(name not in table for table in tables):
        other = "sdpa" if model._supports_sdpa else "eager"  # type: ignore[attr-defined]
        raise ValueError(
            f"{model.__name__} computes its attention itself and does not take attn_implementation={name!r}; use "
            f"attn_implementation={other!r}, or if it is one part of a model, a dict with {other!r} for this part, "
            f"such as {{'': {other!r}, 'text_config': {name!r}}}"
        )


@dataclass(frozen=True)
class LazyMask:
    """An attention mask that becomes a matrix only when a model computes with it.

    A model that does (Doge, DeepSeek-V3.2) gets the matrix (B, 1, N, M) of the ``eager`` implementation: 0 where a
    query may attend, the lowest value of the dtype elsewhere.
    """

    mask: BoundMask | None  # None if every query attends to every key
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    ndim: ClassVar[int] = 4

    def tensor(self) -> Tensor:
        """Return the matrix, of `shape`."""
        matrix = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return matrix if self.mask is None else matrix.masked_fill(~self.mask.tensor(), torch.finfo(self.dtype).min)

    def to(self, *args: Any, **options: Any) -> LazyMask | Tensor:
        """Return this mask if nothing changes (accelerate moves every input), else the moved matrix."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return self if like.to(*args, **options) is like else self.tensor().to(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols such as pickling apply to this object
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        args, options = tree_map_only(cls, cls.tensor, (args, options or {}))
        return function(*args, **options)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LazyMask | Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the attention of one layer; the signature is that of the implementations in transformers.

    ``query`` is (B, H, N, d), ``key`` (B, H_kv, M, d), ``value`` (B, H_kv, M, w), and ``s_aux`` (H,) the logits of
    attention sinks. ``attention_mask`` is the result of `lazy_mask`, or a matrix that broadcasts to (B, H, N, M):
    Boolean (True means *attend*) or added to the scores, as ``position_bias`` is. Without it, ``sliding_window`` and
    ``is_causal`` apply, by default the ``is_causal`` of the module.

    Returns:
        The output (B, N, H, w), and the attention weights (B, H, N, M) or None.

    Raises:
        TypeError: for an unknown argument.
        ValueError: for a mask that does not fit, or if the causal mask is ambiguous without one.
    """
    for name, argument in kwargs.items():
        if name not in IGNORED_ARGUMENTS and argument is not None:
            raise TypeError(
                f"{type(module).__name__} passes {name} to attention, which attnlab does not support; use "
                "attn_implementation='eager'"
                + (", or give position_ids that restart at 0" if name.startswith(("cu_seq_lens", "max_length")) else "")
            )
    (B, H, N, _), M = query.shape, key.shape[2]
    bias = position_bias
    if isinstance(attention_mask, LazyMask):
        bound = attention_mask.mask
    elif attention_mask is None:
        bound = _default_mask(module, N, M, is_causal, sliding_window, query.device)
    else:
        rule, added = _split_matrix(attention_mask)
        bound = rule.bind(N, M, shape=(B, H), device=query.device)
        if added is not None:
            bias = added if bias is None else bias + added
    if bound is not None and (bound.queries, bound.keys) != (N, M):
        raise ValueError(
            f"the mask is for {bound.queries} queries and {bound.keys} keys, not for {N} and {M}; if "
            f"{type(module).__name__} adds keys itself, use attn_implementation='eager'"
        )
    attention = SoftmaxMap(query, key, bound, bias, scale=scaling, sink=s_aux, softcap=softcap)
    out = attention.apply(value, dropout=dropout).transpose(1, 2).contiguous()
    if not output_attentions and not torch.compiler.is_compiling():  # some layers do not pass it on
        output_attentions = any("attentions" in name for name in capturing._active_collector.get() or ())
    return out, attention.materialize() if output_attentions else None


def lazy_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = masking.causal_mask_function,
    attention_mask: Tensor | LazyMask | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> LazyMask | Tensor:
    """Return the attention mask of a forward pass; the signature is that of ``transformers.masking_utils.sdpa_mask``.

    ``attention_mask`` is (B, keys so far), True or 1 for a real token. ``q_offset``, the position of the first query,
    is a tensor with a static cache. ``mask_function`` is causal, or causal and local, if ``allow_is_causal_skip``; at
    most local if ``allow_is_bidirectional_skip``; it takes single positions only if ``use_vmap``.

    Returns:
        A `LazyMask`. The matrix (B, 1, N, M) of the ``eager`` implementation if ``mask_function`` takes single
        positions only, or if the mask is an input of a compiled step.
    """
    if isinstance(attention_mask, LazyMask):  # made by generate()
        return attention_mask
    if isinstance(q_offset, Tensor) or use_vmap:
        position = (batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask)
        matrix: Tensor = masking.eager_mask(*position, dtype, use_vmap=use_vmap, device=device)
        return matrix
    local = None if local_size is None or kv_length < local_size else local_size
    rule: Mask | None = _FunctionMask(mask_function, batch_size, (None, None))
    if allow_is_causal_skip:
        rule = _FunctionMask(mask_function, batch_size, (local - 1, 0)) if local else causal()
    elif allow_is_bidirectional_skip:
        rule = _FunctionMask(mask_function, batch_size, (local, local)) if local else None
    if attention_mask is not None:
        real = masking.prepare_padding_mask(attention_mask, kv_length, kv_offset)[:, : kv_offset + kv_length].bool()
        if torch.compiler.is_compiling() or not bool(real.all()):
            padding = from_key_padding_mask(~real)
            rule = padding if rule is None else rule & padding
    offset = q_offset - kv_offset
    bound = None if rule is None else rule.bind(q_length, kv_length, offset=offset, first=kv_offset, device=device)
    return LazyMask(bound, (batch_size, 1, q_length, kv_length), dtype, device)


@dataclass(frozen=True, eq=False)
class _FunctionMask(Mask):
    """A mask function of transformers, and the band that it stays in."""

    function: Callable[..., Tensor]
    batch_size: int
    band: Band

    def __post_init__(self) -> None:
        self._set(is_sparse=None not in self.band)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.function(b, h, q, k)

    def __repr__(self) -> str:
        return f"transformers({self.function.__qualname__.partition('.')[0]})"


def _split_matrix(matrix: Tensor) -> tuple[Mask, Tensor | None]:
    """Split an additive or Boolean mask into a mask and what is added to the scores."""
    if matrix.dim() != 4:
        raise ValueError(
            f"attention_mask has shape {tuple(matrix.shape)} but a layer takes (batch, 1 or heads, queries, keys); "
            "pass it to the model, which converts (batch, keys)"
        )
    if not matrix.is_floating_point():
        return from_tensor(matrix), None
    forbidden = matrix <= torch.finfo(matrix.dtype).min  # transformers masks with a finite value
    return from_tensor(~forbidden), matrix.masked_fill(forbidden, 0.0)


def _default_mask(
    module: nn.Module, N: int, M: int, is_causal: bool | None, sliding_window: int | None, device: torch.device
) -> BoundMask | None:
    """Return the mask of a layer that was called without one, from its attributes, as ``sdpa`` does."""
    causal_only = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if sliding_window is not None and sliding_window < M and not (causal_only and N == M):
        raise ValueError(
            f"the position of a sliding window of {sliding_window} is ambiguous without a mask; give attention_mask"
        )
    if not causal_only or N == 1:
        return None
    if N != M:
        raise ValueError(
            f"{type(module).__name__} is causal, and the positions of {N} queries among {M} keys are ambiguous "
            "without a mask; give attention_mask"
        )
    rule = causal() if sliding_window is None else causal() & masks.sliding_window(sliding_window)
    return rule.bind(N, M, device=device)
