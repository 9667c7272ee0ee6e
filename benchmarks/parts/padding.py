"""Padded batches: the real tokens alone, against the whole batch under a mask."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from attnlab.masks import padding
from attnlab.models.multihead import MultiAttention
from benchmarks.pairing import Pace, Work, backward, forward, race
from benchmarks.results import Row, Speed

TITLE = "Padded batches"
ABOUT = (
    "A batch of 8 sequences padded to 512 tokens, 56 % of them real, embed_dim 512, 8 heads: our layer under "
    "`padding(lengths, mask_queries=True)`, `nn.MultiheadAttention` under the same `key_padding_mask`, with the same "
    "weights. The outputs of the real tokens are compared first."
)

LENGTHS = (512, 100, 300, 450, 64, 200, 290, 380)
"""Of 512: 56 % of the tokens are real."""


def rows(pace: Pace, lengths: tuple[int, ...] = LENGTHS, D: int = 512, H: int = 8) -> Iterator[Row]:
    """Training and eval mode; what theirs does in eval mode is another path altogether."""
    real, N = torch.tensor(lengths), max(lengths)
    theirs = nn.MultiheadAttention(D, H, batch_first=True)
    ours = MultiAttention.from_torch(theirs)
    ignore = torch.arange(N) >= real[:, None]
    x = torch.randn(len(lengths), N, D, requires_grad=True)

    def ask() -> Tensor:
        return ours(x, mask=padding(real, mask_queries=True))

    def peer() -> Tensor:
        out: Tensor = theirs(x, x, x, key_padding_mask=ignore, need_weights=False)[0]
        return out

    def compared(what: str, mode: str, target: float, a: Work, b: Work, goal: str = "") -> Speed:
        against = f"nn.MultiheadAttention, key_padding_mask, {mode}"
        found, control = race(a, {against: b}, pace)
        return Speed(f"padded to {N}, {what}", against, found[against], control, target, goal=goal)

    torch.testing.assert_close(ask()[~ignore], peer()[~ignore], rtol=1e-4, atol=1e-5)
    yield compared("forward + backward", "training", 2.0, backward(ask), backward(peer), "padded-training")
    yield compared("forward", "training", 2.0, forward(ask), forward(peer))
    ours.eval(), theirs.eval()
    yield compared("forward, eval", "its fast path", 4.0, forward(ask), forward(peer), "padded-eval")
