"""Small subjects for the tests of the explorer."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.explore.subject import Subject
from attnlab.models.multihead import MultiAttention
from attnlab.models.retention import Retention
from attnlab.nn.mixer import SequenceMixer

LENGTH, WIDTH, HEADS = 11, 12, 3
TOKENS = tuple("abcdeabcdea")


def stacked(*layers: SequenceMixer, length: int = LENGTH, special: tuple[bool, ...] = ()) -> Subject:
    """Layers one after the other, on random tokens."""
    x = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(7))

    @torch.no_grad()
    def run() -> Tensor:
        out = x
        for layer in layers:
            out = out + layer(out)
        return out[0]

    tokens = TOKENS if length == LENGTH else tuple(str(i) for i in range(length))
    classes = tuple(f"class {i}" for i in range(WIDTH))
    return Subject(tuple(layer.eval() for layer in layers), run, tokens, classes, special)


def multihead(*, causal: bool = True, seed: int = 0) -> MultiAttention:
    """Attention with scores that are far from uniform."""
    torch.manual_seed(seed)
    layer = MultiAttention(WIDTH, HEADS, causal=causal)
    with torch.no_grad():
        layer.qkv.weight.mul_(3)
    return layer


def retention() -> Retention:
    """A recurrence."""
    torch.manual_seed(1)
    return Retention(WIDTH, HEADS)
