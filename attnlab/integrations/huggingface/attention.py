"""Our softmax engine as an attention implementation of transformers.

A model asks for its mask once (`mask`) and for attention in every layer (`attend`). What goes from the one to the other
is a rule, not a matrix, so that the engine can leave out what nobody looks at.

Axes: B batch, H heads, H_kv heads of keys, N queries, M keys, d head_dim.
"""

from __future__ import annotations

import functools
import math
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

SAYS_NOTHING = {
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
"""What models pass on to every part of theirs, and what is none of attention's business once queries, keys and the mask
are made. Anything else is refused."""


def register(name: str = "attnlab") -> None:
    """Make our engine known to transformers: ``from_pretrained(..., attn_implementation="attnlab")``.

    It computes what their ``eager`` computes: encoders and decoders, heads that share keys, padding on either side,
    sliding windows, caches and ``generate``, soft caps, sinks, position biases, dropout in training. Two things
    differ: a fully masked row (a padded query under a causal mask) is zero, and the weights that
    ``output_attentions=True`` gives have no dropout in them. What it cannot do raises: from then on, building a model
    that computes its attention itself (BLOOM, Falcon) with this name is a ValueError.

    Args:
        name: what to call it.
    """
    known = name in modeling.ALL_ATTENTION_FUNCTIONS.valid_keys()
    modeling.AttentionInterface.register(name, attend)
    masking.AttentionMaskInterface.register(name, mask)
    if known:
        return
    check = modeling.PreTrainedModel.get_correct_attn_implementation

    @functools.wraps(check)
    def checked(model: Any, requested_attention: str | None, *args: Any, **options: Any) -> str:
        if requested_attention == name:
            _refuse_without_interface(type(model), name)
        return str(check(model, requested_attention, *args, **options))

    # transformers asks there whether a model can run "sdpa", but not whether it can run a registered name.
    modeling.PreTrainedModel.get_correct_attn_implementation = checked
    if not hasattr(prepare := generation.GenerationMixin.prepare_inputs_for_generation, "_gives_tensors"):
        generation.GenerationMixin.prepare_inputs_for_generation = _with_tensors(prepare)


def _with_tensors(prepare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``prepare_inputs_for_generation`` whose masks are tensors: with a static cache they are inputs of an export."""

    def matrix(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: matrix(value) for key, value in given.items()}
        return given.tensor() if isinstance(given, Seen) else given

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(*args, **kwargs)
        masks = {key: matrix(value) for key, value in inputs.items() if key.endswith("attention_mask")}
        return {**inputs, **masks}

    prepared._gives_tensors = True  # type: ignore[attr-defined]
    return prepared


def _refuse_without_interface(model: type, name: str) -> None:
    """Raise for a model whose attention does not go through transformers' AttentionInterface."""
    # transformers reads the source of the module; a subclass made in a notebook has none, but its base class has.
    owner: Any = next(base for base in model.__mro__ if hasattr(sys.modules.get(base.__module__), "__file__"))
    tables = [table for key, table in vars(sys.modules[owner.__module__]).items() if key.endswith("ATTENTION_CLASSES")]
    if not owner._can_set_attn_implementation() or any(name not in table for table in tables):
        other = "sdpa" if model._supports_sdpa else "eager"  # type: ignore[attr-defined]
        raise ValueError(
            f"{model.__name__} computes its attention itself and does not take attn_implementation={name!r}; use "
            f"attn_implementation={other!r}, or where it is one part of a model, a dict with {other!r} for this part, "
            f"such as {{'': {other!r}, 'text_config': {name!r}}}"
        )


@dataclass(frozen=True)
class Seen:
    """The attention pattern as a rule, where transformers expects a matrix.

    A model that computes with its mask (Doge, DeepSeek-V3.2) gets the matrix that their ``eager`` takes: 0 where a
    query may attend, the lowest number of the dtype elsewhere.

    Args:
        mask: the rule at this length; None where every query attends to every key.
        shape: (B, 1, N, M).
        dtype: of the matrix.
        device: of the matrix.
    """

    mask: BoundMask | None
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    ndim: ClassVar[int] = 4

    def tensor(self) -> Tensor:
        """The matrix, of `shape`."""
        matrix = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return matrix if self.mask is None else matrix.masked_fill(~self.mask.tensor(), torch.finfo(self.dtype).min)

    def to(self, *args: Any, **options: Any) -> Seen | Tensor:
        """The rule where it is already there (accelerate moves every input), else the matrix moved."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return self if like.to(*args, **options) is like else self.tensor().to(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols such as pickling are not the matrix's
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


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Seen | Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """One layer's attention, as transformers asks for it.

    Args:
        module: the layer, asked for ``is_causal`` where there is no mask.
        query: (B, H, N, d).
        key: (B, H_kv, M, d).
        value: (B, H_kv, M, w).
        attention_mask: what `mask` made, or a matrix that broadcasts to (B, H, N, M): Boolean, True means *may look*,
            or numbers that are added.
        dropout: the probability of dropping a weight.
        scaling: what scores are multiplied by; 1 / √d where not given.
        is_causal: whether to look back only; read where there is no mask, which says it otherwise.
        sliding_window: how far back; read where there is no mask.
        softcap: scores become ``softcap · tanh(score / softcap)``.
        s_aux: (H,), a logit in every row that takes weight and gives nothing.
        position_bias: added to the scores, broadcastable to (B, H, N, M).
        output_attentions: whether to return the weights.
        given: what a model passes on to all of its parts; see `SAYS_NOTHING`.

    Returns:
        (B, N, H, w), and the weights (B, H, N, M) or None.

    Raises:
        TypeError: for an argument that it does not know.
        ValueError: for a mask that does not fit; no mask where it is not certain which keys are meant.
    """
    for name, what in given.items():
        if name not in SAYS_NOTHING and what is not None:
            raise TypeError(
                f"{type(module).__name__} asks attention for {name}, which attnlab does not know; use "
                "attn_implementation='eager'"
                + (", or give position_ids that start anew" if name.startswith(("cu_seq_lens", "max_length")) else "")
            )
    (B, H, N, d), M = query.shape, key.shape[2]
    bias = position_bias
    if isinstance(attention_mask, Seen):
        bound = attention_mask.mask
    elif attention_mask is None:
        bound = _unsaid(module, N, M, is_causal, sliding_window, query.device)
    else:
        rule, added = _read(attention_mask)
        bound = rule.bind(N, M, shape=(B, H), device=query.device)
        if added is not None:
            bias = added if bias is None else bias + added
    if bound is not None and (bound.queries, bound.keys) != (N, M):
        raise ValueError(
            f"the mask is for {bound.queries} queries and {bound.keys} keys, not for {N} and {M}; where "
            f"{type(module).__name__} itself adds keys, use attn_implementation='eager'"
        )
    factor = 1.0 if scaling is None else scaling * math.sqrt(d)  # the engine divides by √d
    if abs(factor - 1.0) > 1e-12:
        query = query * factor
    core = SoftmaxMap(query, key, bound, bias, sink=s_aux, softcap=softcap)
    out = core.apply(value, dropout=dropout).transpose(1, 2).contiguous()
    return out, core.materialize() if output_attentions or _captured() else None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = masking.causal_mask_function,
    attention_mask: Tensor | Seen | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **given: Any,
) -> Seen | Tensor:
    """Who may look at whom, as transformers asks for it once a forward pass.

    Args:
        batch_size: B.
        q_length: N.
        kv_length: M.
        q_offset: the position of the first query; a tensor where the cache has memory for all that will ever be seen.
        kv_offset: the position of the first key.
        mask_function: the rule over (item, head, query, key).
        attention_mask: (B, keys seen so far), True or 1 is a real token.
        local_size: how far a window or a chunk reaches.
        allow_is_causal_skip: says that the rule is causal and local, and no more.
        allow_is_bidirectional_skip: says that the rule is local, and no more.
        use_vmap: says that the rule takes single positions only.
        device: where matrices are made.
        dtype: of the matrix that a model gets which computes with its mask.
        given: what their other implementations need.

    Returns:
        `Seen`; the matrix (B, 1, N, M) that their ``eager`` takes where the rule cannot be asked for several positions
        at once, or where the mask becomes the input of a compiled step.
    """
    if isinstance(attention_mask, Seen):  # made before, by generate()
        return attention_mask
    if isinstance(q_offset, Tensor) or use_vmap:
        matrix: Tensor = masking.eager_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            dtype,
            use_vmap=use_vmap,
            device=device,
        )
        return matrix  # of the kind that a rule becomes: models join masks
    local = None if local_size is None or kv_length < local_size else local_size
    rule: Mask | None
    if allow_is_causal_skip:
        rule = _Theirs(mask_function, batch_size, (local - 1, 0)) if local else causal()
    elif allow_is_bidirectional_skip:
        rule = _Theirs(mask_function, batch_size, (local, local)) if local else None
    else:
        rule = _Theirs(mask_function, batch_size, (None, None))
    if attention_mask is not None:
        real = masking.prepare_padding_mask(attention_mask, kv_length, kv_offset)[:, : kv_offset + kv_length].bool()
        if torch.compiler.is_compiling() or not bool(real.all()):
            padding = from_key_padding_mask(~real)
            rule = padding if rule is None else rule & padding
    offset = q_offset - kv_offset
    bound = None if rule is None else rule.bind(q_length, kv_length, offset=offset, first=kv_offset, device=device)
    return Seen(bound, (batch_size, 1, q_length, kv_length), dtype, device)


@dataclass(frozen=True, eq=False)
class _Theirs(Mask):
    """A rule of theirs for so many items, which reaches no further than it says."""

    function: Callable[..., Tensor]
    batch_size: int
    band: Band

    def __post_init__(self) -> None:
        self._set(is_sparse=None not in self.band)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.function(b, h, q, k)

    def __repr__(self) -> str:
        return f"transformers({self.function.__qualname__.partition('.')[0]})"


def _read(matrix: Tensor) -> tuple[Mask, Tensor | None]:
    """A matrix of theirs as who may look at whom, and what is added to the scores."""
    if matrix.dim() != 4:
        raise ValueError(
            f"attention_mask has shape {tuple(matrix.shape)} where a layer wants (batch, 1 or heads, queries, keys); "
            "give it to the model, which makes one of (batch, keys)"
        )
    if not matrix.is_floating_point():
        return from_tensor(matrix), None
    forbidden = matrix <= torch.finfo(matrix.dtype).min  # theirs is finite, and means never
    return from_tensor(~forbidden), matrix.masked_fill(forbidden, 0.0)


def _unsaid(
    module: nn.Module, N: int, M: int, is_causal: bool | None, sliding_window: int | None, device: torch.device
) -> BoundMask | None:
    """What no mask means: what the layer says of itself, as in their ``sdpa``."""
    back_only = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if sliding_window is not None and sliding_window < M and not (back_only and N == M):
        raise ValueError(
            f"without a mask it is not certain where a window of {sliding_window} lies; give attention_mask"
        )
    if not back_only or N == 1:
        return None
    if N != M:
        raise ValueError(
            f"{type(module).__name__} is causal, and without a mask it is not certain where {N} queries stand among "
            f"{M} keys; give attention_mask"
        )
    rule = causal() if sliding_window is None else causal() & masks.sliding_window(sliding_window)
    return rule.bind(N, M, device=device)


def _captured() -> bool:
    """Whether the model collects weights: some layers keep ``output_attentions`` to themselves."""
    if torch.compiler.is_compiling():
        return False
    return any("attentions" in name for name in capturing._active_collector.get() or ())
