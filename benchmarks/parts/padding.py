"""Padded batches: ours computes only the real tokens, theirs the whole batch with a mask."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from attnlab.bench.timing import TimingConfig, backward, forward
from attnlab.masks import padding
from attnlab.models.multihead import MultiAttention
from benchmarks.results import Row, speed_row

TITLE = "Padded batches"
ABOUT = (
    "A batch of 8 sequences padded to 512 tokens, 56 % of them real, embed_dim 512, 8 heads: our layer with "
    "`padding(lengths, mask_queries=True)`, `nn.MultiheadAttention` with the same `key_padding_mask` and the same "
    "parameters. The outputs of the real tokens are compared first."
)

LENGTHS = (512, 100, 300, 450, 64, 200, 290, 380)
"""56 % of the tokens are real."""


def rows(timing: TimingConfig, lengths: tuple[int, ...] = LENGTHS, D: int = 512, H: int = 8) -> Iterator[Row]:
    """Training mode, and eval mode, where ``nn.MultiheadAttention`` uses its fast path."""
    real, N = torch.tensor(lengths), max(lengths)
    layer = nn.MultiheadAttention(D, H, batch_first=True)
    ours = MultiAttention.from_torch(layer)
    ignored = torch.arange(N) >= real[:, None]
    x = torch.randn(len(lengths), N, D, requires_grad=True)

    def padded() -> Tensor:
        return ours(x, mask=padding(real, mask_queries=True))

    def theirs() -> Tensor:
        out: Tensor = layer(x, x, x, key_padding_mask=ignored, need_weights=False)[0]
        return out

    torch.testing.assert_close(padded()[~ignored], theirs()[~ignored], rtol=1e-4, atol=1e-5)
    baseline, case = "nn.MultiheadAttention, key_padding_mask", f"padded to {N}, forward"
    both = backward(padded), backward(theirs)
    yield speed_row(timing, f"{case} + backward", f"{baseline}, training", *both, 2.0, "padded-training")
    yield speed_row(timing, case, f"{baseline}, training", forward(padded), forward(theirs), 2.0)
    ours.eval(), layer.eval()
    both = forward(padded), forward(theirs)
    yield speed_row(timing, f"{case}, eval", f"{baseline}, fast path", *both, 4.0, "padded-eval")
