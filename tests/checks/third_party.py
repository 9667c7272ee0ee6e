"""Attention layers as other libraries write them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Correct(nn.Module):
    """Attention in one file that passes every check."""

    def __init__(self, dim: int, heads: int = 4, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out, self.drop = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        v = self.qkv(x).chunk(3, -1)[2].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = self.out((self.drop(self.attention_weights(x, mask)) @ v).transpose(1, 2).flatten(2))
        return out * self.allowed(x, mask).any(-1, keepdim=True)

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, _ = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        masked = ~self.allowed(x, mask).unsqueeze(1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0.0)

    def allowed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        allowed = allowed.tril() if self.causal else allowed
        return (allowed if mask is None else allowed & mask).expand(len(x), -1, -1)


class Tutorial(nn.Module):
    """Attention as in many tutorials: a mask replaces causal, and a fully masked row is NaN."""

    def __init__(self, embed_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.causal, self.qkv = causal, nn.Linear(embed_dim, 3 * embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif self.causal:
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).bool().triu(1), -torch.inf)
        return scores.softmax(-1) @ v


class AlwaysCausal(nn.Module):
    """Has no option and no mask; its width is a value of its config."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        self.values = nn.Linear(config["n"], config["n"])

    def forward(self, x: Tensor) -> Tensor:
        return self.values(x).cumsum(1)


class HuggingFaceStyle(nn.Module):
    """Takes hidden_states and an attention_mask of ones and zeros, and returns a tuple."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.inner = Correct(hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        mask = None if attention_mask is None else (attention_mask == 1)[:, None, :]
        return (self.inner(hidden_states, mask),)


def call_hugging_face_style(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A padding mask is the same for every query: a key that any query may attend to is real."""
    return layer(x, attention_mask=None if mask is None else mask.any(1).long())[0]


class NeedsConfig(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()


layer = Correct(16)
number = 3
