"""The forward pass of a subject under a setup: the attention of every layer, with the changes that were asked for.

Axes: B batch (1), H heads, N queries, M keys, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.explore.setup import MaskChange, ScoreChange, Setup
from attnlab.explore.subject import Subject
from attnlab.files.data import memory_limit
from attnlab.masks import Mask
from attnlab.network.pruning import edit_heads
from attnlab.nn.attention import Attention
from attnlab.nn.mixer import SequenceMixer
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.attention_map import AttentionMap, DenseMap
from attnlab.utils.errors import UserError

MAX_DETAIL = 1_024
"""The length up to which whole matrices are kept."""

CHUNK_VALUES = 2**24
"""Values of a matrix that are materialized at a time where it is not kept."""


@dataclass
class LayerPass:
    """One layer in a forward pass.

    Args:
        layer: the layer.
        x: its input, (1, N, D).
        mask: the mask that it was called with, in addition to its own pattern.
        output: its output, (1, N, D), with all changes.
        map: its attention weights with the changed scores; None for a layer without weights.
        shown: which tokens are shown, (N,); None for all. The weights are renormalized over these.
    """

    layer: SequenceMixer
    x: Tensor
    mask: Mask | None
    output: Tensor
    map: AttentionMap | None
    shown: Tensor | None = None
    keep: bool = True
    """Whether the whole matrix is kept; otherwise it is computed again, in parts."""
    dense: Tensor | None = field(default=None, repr=False)
    """The weights of `map`, (H, N, M), if they are materialized."""
    _kept: Tensor | None = field(default=None, repr=False)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """N, M."""
        return (self.x.shape[1], self.x.shape[1]) if self.map is None else (self.map.shape[2], self.map.shape[3])

    @property
    def is_signed(self) -> bool:
        """Whether weights may be negative."""
        return self.layer.card.weights == "signed"

    @property
    def is_kept(self) -> bool:
        """Whether the whole matrix is kept."""
        return self.keep and max(self.shape) <= MAX_DETAIL

    @torch.no_grad()
    def weights(self, rows: Tensor | None = None) -> Tensor:
        """Return the weights of some queries (None: all), (H, n, M), as they are shown."""
        assert self.map is not None
        N = self.shape[0]
        if self._kept is None and self.is_kept:
            dense = self.map.materialize()[0] if self.dense is None else self.dense
            self._kept, self.dense = self._shown(dense.float(), torch.arange(N)), None
        if self._kept is not None:
            return self._kept if rows is None else self._kept[:, rows]
        rows = torch.arange(N) if rows is None else rows
        return self._shown(self.map.materialize(rows)[0].float(), rows)

    def _shown(self, weights: Tensor, rows: Tensor) -> Tensor:
        if self.shown is None:
            return weights
        total = weights.sum(-1, keepdim=True)
        weights = weights * self.shown * self.shown[rows][:, None]
        if self.is_signed:
            return weights
        kept = weights.sum(-1, keepdim=True)
        return weights * torch.where(kept > 0, total / kept, 0.0)

    @torch.no_grad()
    def pooled(self, queries: slice, keys: slice, size: int, head: int | None = None) -> Tensor:
        """Return sums over blocks of keys, averaged over blocks of queries, (H or 1, at most size, at most size).

        The values are exact: without pooling where a range has at most ``size`` entries.
        """
        assert self.map is not None
        M, heads = self.shape[1], slice(None) if head is None else slice(head, head + 1)
        row_block = torch.arange(queries.stop - queries.start) // -(-(queries.stop - queries.start) // size)
        key_block = torch.arange(keys.stop - keys.start) // -(-(keys.stop - keys.start) // size)
        sums = _indicators(key_block)
        means = _indicators(row_block)
        means = (means / means.sum(0)).T
        if self.is_kept:
            part = self.weights()[heads, queries, keys]
            if part.shape[-1] > size:
                part = part @ sums
            return means @ part if part.shape[-2] > size else part
        count = queries.stop - queries.start
        if self.map.shape[1] * count * M <= 16 * CHUNK_VALUES:  # cheaper than a pass over all queries
            step, parts = max(1, CHUNK_VALUES // (self.map.shape[1] * M)), []
            for start in range(queries.start, queries.stop, step):
                rows = torch.arange(start, min(start + step, queries.stop))
                parts.append(self.weights(rows)[heads, :, keys] @ sums)
            return means @ torch.cat(parts, 1)
        values = torch.zeros(M, sums.shape[1], dtype=self.x.dtype)
        values[keys] = sums.to(values.dtype)
        return means @ self.map.apply(values[None, None])[0, heads, queries].float()


@dataclass
class Pass:
    """A forward pass: its layers in order, the output of the network, (N, C) or (C,), and what a reader must know."""

    subject: Subject
    layers: list[LayerPass]
    output: Tensor
    notes: tuple[str, ...] = ()


@torch.no_grad()
def run(subject: Subject, setup: Setup, *, keep: bool = True) -> Pass:
    """Run the subject with the changes of the setup; ``keep`` the matrices of inputs of up to `MAX_DETAIL` tokens.

    Raises:
        UserError: for a change that a layer does not support, or that does not fit the input.
    """
    N, H = len(subject.tokens), [layer.num_heads for layer in subject.layers]
    for i, head in setup.ablated:
        if i >= len(H) or head >= H[i]:
            raise UserError(f"there is no head {head} in layer {i}; ablated takes pairs of a layer and a head")
    mask = mask_of(setup.mask, N)
    hide = getattr(setup.source, "hide_special", False) and any(subject.special)
    shown = ~torch.tensor(subject.special) if hide else None
    passes: dict[int, LayerPass] = {}
    applied: dict[int, set[str]] = {}

    def before(layer: SequenceMixer, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = options.get("mask")
        own = None if given is None else masks.as_mask(given)
        combined = mask if own is None else own if mask is None else own & mask
        return inputs, {**options, "mask": combined}

    def after(
        i: int, layer: SequenceMixer, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        x, given = inputs[0], options.get("mask")
        gone = [head for at, head in setup.ablated if at == i]
        if gone and not _has_weights(layer):
            raise UserError(f"layer {i}, {layer.card.title}, has no attention weights, so no head can be left out")
        attention, changed = attention_map(layer, x, given, setup.scores)
        applied[i], dense = changed, None
        if changed or gone:
            assert isinstance(layer, Attention)
            assert attention is not None
            _check_dense(attention)
            dense = attention.materialize()
            output = _without(layer, gone, dense, x, given)
        if not output.isfinite().all():
            raise UserError(
                f"layer {i}, {layer.card.title}, computes values that are not finite; check the parameters of the "
                "network, and the values of the input"
            )
        kept = dense[0] if keep and dense is not None else None
        passes[i] = LayerPass(layer, x, given, output, attention, shown, keep, kept)
        return output

    with ExitStack() as stack:
        for i, layer in enumerate(subject.layers):
            if setup.mask.prefix is not None:
                stack.enter_context(_bidirectional(layer))
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            hook: Callable[..., Any] = partial(after, i)
            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        output = subject.run()
    notes = _not_applied(setup.scores, [(subject.layers[i], applied[i]) for i in sorted(applied)])
    return Pass(subject, [passes[i] for i in range(len(subject.layers))], output, notes)


def _without(layer: Attention, heads: list[int], weights: Tensor, x: Tensor, mask: Mask | None) -> Tensor:
    """Return the output for these weights (1, H, N, M), without these heads."""
    if not heads:
        return layer.apply_weights(weights, x, mask=mask)
    if not isinstance(layer, MultiHeadBase):
        return layer.apply_weights(weights.index_fill(1, torch.tensor(heads), 0.0), x, mask=mask)

    def edit(outputs: Tensor) -> Tensor:  # (1, N, H, w), with what a mechanism adds after its weighted sums
        return outputs.index_fill(2, torch.tensor(heads), 0.0)

    with edit_heads(layer, edit):
        return layer.apply_weights(weights, x, mask=mask)


def mask_of(change: MaskChange, length: int) -> Mask | None:
    """Return the mask of the change for a sequence; None if it allows everything.

    Raises:
        UserError: for documents or blocked pairs beyond the length.
    """
    parts: list[Mask] = []
    if change.window is not None:
        parts.append(masks.sliding_window(change.window))
    if change.prefix is not None:
        parts.append(masks.causal() | masks.prefix(change.prefix))
    if change.documents:
        total = sum(change.documents)
        if total > length:
            raise UserError(f"the documents have {total} tokens together, but the input has {length}")
        sizes = torch.tensor([*change.documents, length - total])
        parts.append(masks.documents(torch.arange(len(sizes)).repeat_interleave(sizes)))
    if change.blocked:
        pairs = torch.tensor(change.blocked)
        if int(pairs.max()) >= length:
            raise UserError(f"a blocked pair is beyond the input, which has {length} tokens, counted from 0")
        if length > MAX_DETAIL:
            raise UserError(f"pairs can be blocked in inputs of up to {MAX_DETAIL:,} tokens, not {length:,}")
        allowed = torch.ones(length, length, dtype=torch.bool)
        allowed[pairs[:, 0], pairs[:, 1]] = False
        parts.append(masks.from_tensor(allowed))
    mask = None
    for part in parts:
        mask = part if mask is None else mask & part
    return mask


def attention_map(
    layer: SequenceMixer, x: Tensor, mask: Mask | None, scores: ScoreChange
) -> tuple[AttentionMap | None, set[str]]:
    """Return the weights of a layer with those changes of the scores that it supports, and the names of these.

    None for a layer without weights.
    """
    if not _has_weights(layer):
        return None, set()
    assert isinstance(layer, Attention)
    weights = layer.attention_map(x, mask=mask)
    changes = {name: getattr(scores, name) for name in asked(scores) & weights.changes}
    weights = weights.with_scores(**changes)
    if scores.top_k is None:
        return weights, set(changes)
    return _largest(weights, scores.top_k, layer.card.weights == "signed"), {*changes, "top_k"}


def asked(scores: ScoreChange) -> set[str]:
    """Return the names of the changes that differ from the defaults."""
    return {name for name, declared in ScoreChange.model_fields.items() if getattr(scores, name) != declared.default}


def _not_applied(scores: ScoreChange, layers: list[tuple[SequenceMixer, set[str]]]) -> tuple[str, ...]:
    """Name the changes that some layers do not support.

    Raises:
        UserError: for a change that no layer supports.
    """
    notes = []
    for name in sorted(asked(scores)):
        without = sorted({layer.card.title for layer, applied in layers if name not in applied})
        if not any(name in applied for _, applied in layers):
            raise UserError(f"{' and '.join(without)}: its weights cannot be changed by {name}; leave it out")
        if without:
            notes.append(f"{name} does not apply to the layers of {' and '.join(without)}, which are unchanged")
    return tuple(notes)


def _has_weights(layer: SequenceMixer) -> bool:
    return isinstance(layer, Attention) and layer.supports("weights")


def _check_dense(weights: AttentionMap) -> None:
    """Raise UserError where changed weights, which are materialized, need more than a quarter of the memory."""
    _, H, N, M = weights.shape
    needed = 3 * 4 * H * N * M
    if needed > memory_limit():
        raise UserError(
            f"changed weights are computed as whole matrices: {H} heads over {N:,} tokens take {needed:,} bytes, more "
            f"than a quarter of this machine's memory ({memory_limit():,}); give a shorter input"
        )


def _largest(weights: AttentionMap, count: int, signed: bool) -> DenseMap:
    """Keep the largest weights of each query; those of a row that are not negative keep its sum."""
    _check_dense(weights)
    dense = weights.materialize()
    index = dense.abs().topk(min(count, dense.shape[-1])).indices
    kept = torch.zeros_like(dense).scatter(-1, index, dense.gather(-1, index))
    if not signed:
        total = kept.sum(-1, keepdim=True)
        kept = kept * torch.where(total > 0, dense.sum(-1, keepdim=True) / total, 0.0)
    return DenseMap(kept)


@contextmanager
def _bidirectional(layer: SequenceMixer) -> Iterator[None]:
    """Let a causal layer attend to later keys, which the mask of a prefix then restricts."""
    if layer.card.always_causal:
        raise UserError(f"{layer.card.title} is always causal; a prefix would let it attend to later tokens")
    before, layer.causal = layer.causal, False
    try:
        yield
    finally:
        layer.causal = before


def _indicators(blocks: Tensor) -> Tensor:
    """(n,) block indices to (n, blocks), 1 where the entry is in the block."""
    return nn.functional.one_hot(blocks).float()
