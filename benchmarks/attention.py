"""MultiAttention against nn.MultiheadAttention(need_weights=False), the same weights, outputs compared first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnlab.models.multihead import MultiAttention
from benchmarks.pairing import Ratio, speed_ratio

SHAPES = [(32, 16, 64, 4), (8, 128, 128, 8), (8, 512, 512, 8), (1, 2048, 512, 8), (1, 8192, 512, 8)]
"""(batch, length, embed_dim, heads)"""

TARGET = 0.95


@dataclass(frozen=True)
class Row:
    """One comparison, and the control that shows what the machine's noise alone would give."""

    shape: tuple[int, int, int, int]
    causal: bool
    what: str
    ratio: Ratio
    control: Ratio

    @property
    def reached(self) -> bool:
        """Whether the median reaches the target."""
        return self.ratio.median >= TARGET


def rows(shapes: list[tuple[int, int, int, int]] = SHAPES) -> Iterator[Row]:
    """Every shape, causal and not: forward in training and in eval mode, and forward with backward."""
    for B, N, D, H in shapes:
        pairs = 60 if N <= 512 else 30 if N <= 2048 else 9
        for causal in (False, True):
            theirs = nn.MultiheadAttention(D, H, batch_first=True)
            ours = MultiAttention.from_torch(theirs, causal=causal)
            x = torch.randn(B, N, D)
            triangle = nn.Transformer.generate_square_subsequent_mask(N) if causal else None

            def peer(x: Tensor, layer: nn.Module = theirs, mask: Tensor | None = triangle) -> Tensor:
                out: Tensor = layer(x, x, x, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]
                return out

            torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-5)
            for what, run in WAYS.items():
                for layer in (ours, theirs):
                    layer.train(what != "forward, eval")
                a, b = run(ours, x), run(peer, x)
                yield Row((B, N, D, H), causal, what, speed_ratio(a, b, pairs=pairs), speed_ratio(b, b, pairs=pairs))


def _forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def _forward_eval(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    def work() -> None:
        with torch.inference_mode():
            layer(x)

    return work


def _forward_backward(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()

    def work() -> None:
        layer(x).sum().backward()

    return work


WAYS = {"forward": _forward, "forward, eval": _forward_eval, "forward + backward": _forward_backward}
