"""What the softmax engine saves where a kernel would compute what nobody may look at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.cache import Cache
from attnlab.engines.softmax import softmax_attention
from attnlab.masks import causal, padding, window
from attnlab.models.multihead import MultiAttention
from benchmarks.pairing import Ratio, Work, speed_ratio

LENGTHS = (512, 100, 300, 450, 64, 200, 290, 380)
"""Of 512: 56 % of the tokens are real."""

GROWTH = (1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Row:
    """One comparison with its control, and what it shall reach."""

    what: str
    peer: str
    target: float
    ratio: Ratio
    control: Ratio


def rows() -> Iterator[Row]:
    """Padded batches, windows, short causal sequences, dropout."""
    yield from _padded()
    yield _window()
    yield from _triangle()
    yield from _dropout()
    yield _decoding()


def growth() -> tuple[float, list[float]]:
    """The exponent with which a causal window of 256 grows from 1k to 8k tokens, whole and by doubling."""
    layer, times = MultiAttention(512, 8, causal=True).eval(), []
    for N in GROWTH:
        x = torch.randn(1, N, 512)
        run = _forward(lambda x=x: layer(x, mask=window(256)))  # type: ignore[misc]
        run()
        samples = sorted(_seconds(run) for _ in range(9))
        times.append(samples[4])
    steps = [math.log2(b / a) for a, b in pairwise(times)]
    return sum(steps) / len(steps), steps


def _padded() -> Iterator[Row]:
    B, N, D, H = 8, 512, 512, 8
    theirs = nn.MultiheadAttention(D, H, batch_first=True)
    ours = MultiAttention.from_torch(theirs)
    lengths = torch.tensor(LENGTHS)
    ignore = torch.arange(N) >= lengths[:, None]
    x = torch.randn(B, N, D, requires_grad=True)

    def ask() -> Tensor:
        return ours(x, mask=padding(lengths, queries=True))

    def peer() -> Tensor:
        out: Tensor = theirs(x, x, x, key_padding_mask=ignore, need_weights=False)[0]
        return out

    torch.testing.assert_close(ask()[~ignore], peer()[~ignore], rtol=1e-4, atol=1e-5)
    shape, name = f"padded to {N}, 56 % real", "nn.MultiheadAttention, key_padding_mask"
    yield _compared(f"{shape}, forward + backward", name, 2.0, _backward(ask), _backward(peer))
    yield _compared(f"{shape}, forward", f"{name}, training mode", 2.0, _forward(ask), _forward(peer))
    ours.eval(), theirs.eval()
    yield _compared(f"{shape}, forward, eval", f"{name}, its fast path", 4.0, _forward(ask), _forward(peer))


def _window() -> Row:
    N, D, H = 8192, 512, 8
    theirs = nn.MultiheadAttention(D, H, batch_first=True).eval()
    ours = MultiAttention.from_torch(theirs, causal=True).eval()
    x = torch.randn(1, N, D)
    triangle = nn.Transformer.generate_square_subsequent_mask(N)

    def peer() -> Tensor:
        out: Tensor = theirs(x, x, x, need_weights=False, attn_mask=triangle, is_causal=True)[0]
        return out

    # The first 256 tokens see the same through a window of 256 as without it.
    torch.testing.assert_close(ours(x, mask=window(256))[:, :256], peer()[:, :256], rtol=1e-4, atol=1e-5)
    ask = _forward(lambda: ours(x, mask=window(256)))
    return _compared(f"window 256, {N} tokens, forward", "nn.MultiheadAttention, causal", 3.5, ask, _forward(peer), 7)


def _triangle() -> Iterator[Row]:
    for N in (128, 256, 512):
        q, k, v = _heads(8, N)

        def ask(q: Tensor = q, k: Tensor = k, v: Tensor = v, N: int = N) -> Tensor:
            return softmax_attention(q, k, v, causal().bind(N, shape=(8, 8)))

        def peer(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        torch.testing.assert_close(ask(), peer(), rtol=1e-4, atol=1e-5)
        what = f"causal core, {N} tokens"
        yield _compared(f"{what}, forward", "SDPA, is_causal", 1.0, _forward(ask), _forward(peer))
        yield _compared(f"{what}, forward + backward", "SDPA, is_causal", 1.0, _backward(ask), _backward(peer))


def _dropout() -> Iterator[Row]:
    for N in (64, 128, 256, 512):
        q, k, v = _heads(8, N)

        def ask(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return softmax_attention(q, k, v, dropout=0.1)

        def peer(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)

        what = f"dropout 0.1, {N} tokens, forward + backward"
        yield _compared(what, "SDPA, dropout_p", 1.25, _backward(ask), _backward(peer))


def _decoding() -> Row:
    """One token more after 2,048, against the same layer with keys and values that are joined anew each step."""
    layer, x = MultiAttention(512, 8, causal=True).eval(), torch.randn(1, 2049, 512)
    new = x[:, 2048:]
    with torch.inference_mode():
        cache = Cache(4096)
        layer(x[:, :2048], cache=cache)
        _, K, V = layer._project(x[:, :2048], None)

    def ask() -> Tensor:
        out: Tensor = layer(new, cache=cache)
        cache.rollback(1)
        return out

    def peer() -> Tensor:
        q, k, v = layer._project(new, None)
        heads = F.scaled_dot_product_attention(q, torch.cat([K, k], 2), torch.cat([V, v], 2))
        return layer.output(heads.transpose(1, 2).flatten(2))

    with torch.inference_mode():
        torch.testing.assert_close(ask(), peer(), rtol=1e-4, atol=1e-5)
    return _compared("one token after 2,048", "keys and values joined by torch.cat", 1.0, _forward(ask), _forward(peer))


def _compared(what: str, peer: str, target: float, a: Work, b: Work, pairs: int = 21) -> Row:
    return Row(what, peer, target, speed_ratio(a, b, pairs=pairs), speed_ratio(b, b, pairs=pairs))


def _heads(B: int, N: int) -> list[Tensor]:
    x = torch.randn(B, N, 3, 8, 64, requires_grad=True)
    return [t.transpose(1, 2) for t in x.unbind(2)]


def _forward(run: Callable[[], Tensor]) -> Work:
    def work() -> None:
        with torch.inference_mode():
            run()

    return work


def _backward(run: Callable[[], Tensor]) -> Work:
    return lambda: run().sum().backward()


def _seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
