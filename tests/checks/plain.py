"""The base of the faulty layers: multi-head attention in eager PyTorch that fulfils the whole contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import Attention
from attnlab.nn.cache import KVCache
from attnlab.nn.mixer import SequenceMixer


class Plain(Attention):
    """One submodule per projection, attention weights materialized, and one method per step to override."""

    card = replace(MultiAttention.card, memory="n²·h + n·d")

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 3,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout)
        options = {"device": device, "dtype": dtype}
        self.query, self.key = nn.Linear(embed_dim, embed_dim, **options), nn.Linear(embed_dim, embed_dim, **options)
        self.value, self.output = nn.Linear(embed_dim, embed_dim, **options), nn.Linear(embed_dim, embed_dim, **options)

    def reset_parameters(self) -> None:
        for module in self.children():
            module.reset_parameters()  # type: ignore[operator]

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        source = x if context is None else context
        return self.split(self.query(x)), self.split(self.key(source)), self.split(self.value(source))

    def split(self, t: Tensor) -> Tensor:
        return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.mT / math.sqrt(self.head_dim)

    def normalize(self, scores: Tensor, mask: BoundMask | None) -> Tensor:
        if mask is None:
            return scores.softmax(-1)
        allowed = mask.tensor()
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~allowed, 0.0)

    def returned(self, weights: Tensor) -> Tensor:
        """Change the weights that are returned."""
        return weights

    def drop(self, weights: Tensor) -> Tensor:
        return F.dropout(weights, self.dropout, self.training)

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        return self.output((self.drop(weights) @ v).transpose(1, 2).flatten(2))

    def before(self, x: Tensor, mask: BoundMask | None, cache: KVCache | None) -> Tensor:
        """Change the tokens."""
        return x

    def after(self, out: Tensor, x: Tensor, mask: BoundMask | None, cache: KVCache | None) -> Tensor:
        """Change the output."""
        return out

    def _forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        tokens = self.before(x, mask, cache)
        q, k, v = self.project(tokens, context)
        if cache is not None:
            k, v = cache.update(k, v)
        scores = self.scores(q, k)
        weights = self.normalize(scores if attn_bias is None else scores + attn_bias, mask)
        return self.after(self.attend(weights, v), x, mask, cache)

    def _attention_weights(  # type: ignore[override]
        self, x: Tensor, mask: BoundMask | None, attn_bias: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        q, k, _ = self.project(x, context)
        scores = self.scores(q, k)
        return self.returned(self.normalize(scores if attn_bias is None else scores + attn_bias, mask))

    def _apply_weights(self, weights: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        v = self.split(self.value(x if context is None else context))
        return self.output((weights @ v).transpose(1, 2).flatten(2))


FAULTY: list[tuple[str, type[SequenceMixer]]] = []


def fails(*checks: str, replaces: str = "", base: type[SequenceMixer] = Plain) -> Callable[[Any], Any]:
    """Register a layer that must fail these checks: a class, or ``base`` with a function in place of one method."""

    def register(fault: Any) -> Any:
        layer = fault if isinstance(fault, type) else type(fault.__name__, (base,), {replaces: fault})
        FAULTY.extend((check, layer) for check in checks)
        return fault

    return register
