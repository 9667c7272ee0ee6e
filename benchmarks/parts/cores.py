"""The cores, without projections: what is left out where a kernel would compute what nobody may look at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.masks import causal, sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.ops.scan import linear_scan
from attnlab.ops.softmax import softmax_attention
from benchmarks.pairing import Pace, Work, backward, forward, race
from benchmarks.peers import Missing, load
from benchmarks.results import Absent, Row, Speed

TITLE = "Windows, linear attention, short causal sequences, dropout"
ABOUT = (
    "Batch 8 where there are up to 512 tokens and 1 beyond, 8 heads of 64, float32. The outputs are compared first, "
    "where no chance is in them. The windows of local-attention: with `exact_windowsize=True` it looks 256 back, as "
    "our `sliding_window(257)` does, and both give the same; by default it is cheaper, and a token sees 256 to 511 "
    "back, by the place that it has in its block. performer-pytorch runs as it does on every CPU, without its CUDA "
    "code, and with the cheapest features that it has (`no_projection=True`); ours computes the same features."
)

HEADS, WIDTH = 8, 64
WINDOW = 256


def rows(pace: Pace, long: int = 8192, lengths: tuple[int, ...] = (64, 128, 256, 512)) -> Iterator[Row]:
    """Windows, linear attention, short causal sequences, dropout."""
    yield _window_layer(pace, long)
    yield from _local(pace, long)
    yield _linear(pace, long)
    for N in lengths:
        if N >= 128:
            yield from _triangle(pace, N)
    for N in lengths:
        yield _dropout(pace, N)


def _window_layer(pace: Pace, N: int) -> Row:
    theirs = nn.MultiheadAttention(HEADS * WIDTH, HEADS, batch_first=True).eval()
    ours = MultiAttention.from_torch(theirs, causal=True).eval()
    x = torch.randn(1, N, HEADS * WIDTH)
    triangle = nn.Transformer.generate_square_subsequent_mask(N)

    def ask() -> Tensor:
        return ours(x, mask=sliding_window(WINDOW))

    def peer() -> Tensor:
        out: Tensor = theirs(x, x, x, need_weights=False, attn_mask=triangle, is_causal=True)[0]
        return out

    # The first tokens see the same through a window as without it.
    torch.testing.assert_close(ask()[:, :WINDOW], peer()[:, :WINDOW], rtol=1e-4, atol=1e-5)
    what, against = f"window {WINDOW}, {N} tokens, the layer, forward", "nn.MultiheadAttention, causal"
    return _compared(pace, what, against, 3.5, forward(ask), forward(peer), "window")


def _local(pace: Pace, N: int) -> Iterator[Row]:
    what = f"window {WINDOW}, {N} tokens, the core, forward"
    try:
        attention = load("local-attention").LocalAttention
    except Missing as missing:
        yield Absent(what, "local-attention", str(missing), "local")
        return
    q, k, v = torch.randn(3, 1, HEADS, N, WIDTH)

    def ask(size: int) -> Tensor:
        return softmax_attention(q, k, v, (causal() & sliding_window(size)).bind(N, shape=(1, HEADS)))

    for exact in (True, False):
        theirs = attention(WINDOW, causal=True, exact_windowsize=exact, use_rotary_pos_emb=False)
        own = WINDOW + 1 if exact else WINDOW
        same = slice(None) if exact else slice(WINDOW)  # the first block sees the same either way
        torch.testing.assert_close(ask(own)[:, :, same], theirs(q, k, v)[:, :, same], rtol=1e-4, atol=1e-5)
        against = f"local-attention, {'exact_windowsize=True' if exact else 'as it comes'}"
        ours, peer = forward(lambda own=own: ask(own)), forward(lambda theirs=theirs: theirs(q, k, v))  # type: ignore[misc]
        yield _compared(pace, what, against, 2.5, ours, peer, "local")


def _linear(pace: Pace, N: int) -> Row:
    """Softmax over the features of queries, exponentials of keys; the mean over what was seen, by a column of ones."""
    what, against = f"linear attention, {N} tokens, the core, forward", "performer-pytorch, causal"
    try:
        attention = load("performer-pytorch").FastAttention
    except Missing as missing:
        return Absent(what, against, str(missing), "linear")
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it has no CUDA code
        theirs = attention(WIDTH, causal=True, no_projection=True)
    q, k, v = torch.randn(3, 1, HEADS, N, WIDTH)

    def ask() -> Tensor:
        out, _ = linear_scan(q.softmax(-1), k.exp(), F.pad(v, (0, 1), value=1.0))
        return out[..., :-1] / out[..., -1:]

    torch.testing.assert_close(ask(), theirs(q, k, v), rtol=1e-4, atol=1e-5)
    return _compared(pace, what, against, 12.0, forward(ask), forward(lambda: theirs(q, k, v)), "linear")


def _triangle(pace: Pace, N: int) -> Iterator[Row]:
    q, k, v = _heads(8, N)

    def ask() -> Tensor:
        return softmax_attention(q, k, v, causal().bind(N, shape=(8, HEADS)))

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    torch.testing.assert_close(ask(), peer(), rtol=1e-4, atol=1e-5)
    what, against = f"causal core, {N} tokens", "SDPA, is_causal"
    yield _compared(pace, f"{what}, forward", against, 1.0, forward(ask), forward(peer))
    yield _compared(pace, f"{what}, forward + backward", against, 1.0, backward(ask), backward(peer))


def _dropout(pace: Pace, N: int) -> Row:
    q, k, v = _heads(8, N)

    def ask() -> Tensor:
        return softmax_attention(q, k, v, dropout=0.1)

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)

    what = f"dropout 0.1, {N} tokens, forward + backward"
    return _compared(pace, what, "SDPA, dropout_p", 1.25, backward(ask), backward(peer), "dropout")


def _compared(pace: Pace, what: str, against: str, target: float, ours: Work, theirs: Work, goal: str = "") -> Row:
    found, control = race(ours, {against: theirs}, pace)
    return Speed(what, against, found[against], control, target, goal=goal)


def _heads(B: int, N: int) -> list[Tensor]:
    """Queries, keys and values as a layer has them: views into one projection."""
    x = torch.randn(B, N, 3, HEADS, WIDTH, requires_grad=True)
    return [t.transpose(1, 2) for t in x.unbind(2)]
