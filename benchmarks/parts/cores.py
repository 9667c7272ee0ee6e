"""Attention without projections: sliding windows, linear attention, short causal sequences and dropout."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.bench.peers import MissingPeerError, load
from attnlab.bench.timing import TimingConfig, backward, forward
from attnlab.masks import causal, sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.models.performer import PerformerAttention
from attnlab.ops.scan import linear_scan
from attnlab.ops.softmax import softmax_attention
from benchmarks.results import NotMeasured, Row, speed_row
from peers.adapters import pytorch

TITLE = "Sliding windows, linear attention, short causal sequences, dropout"
ABOUT = (
    "Batch 8 up to 512 tokens and 1 beyond, 8 heads of 64, float32. The outputs are compared first, except with "
    "dropout. *attention* is the op without projections. local-attention with `exact_windowsize=True` attends to 256 "
    "previous keys, like our `sliding_window(257)`, and the outputs are equal; its default is cheaper, and a query "
    "attends to 256 to 511 previous keys, depending on its position in its block. performer-pytorch runs without its "
    "CUDA code and with its cheapest features (`no_projection=True`); ours computes the same features. With "
    "*random features* both compute the same 266 features per head."
)

HEADS, HEAD_DIM = 8, 64
WINDOW = 256


def rows(timing: TimingConfig, long: int = 8192, lengths: tuple[int, ...] = (64, 128, 256, 512)) -> Iterator[Row]:
    yield _window_layer(timing, long)
    yield from _local(timing, long)
    yield _linear(timing, long)
    yield _performer(timing, long)
    for N in lengths:
        if N >= 128:
            yield from _causal(timing, N)
    for N in lengths:
        q, k, v = _qkv(8, N)
        ours = backward(partial(softmax_attention, q, k, v, dropout=0.1))
        theirs = backward(partial(F.scaled_dot_product_attention, q, k, v, dropout_p=0.1))
        case = f"dropout 0.1, {N} tokens, forward + backward"
        yield speed_row(timing, case, "SDPA, dropout_p", ours, theirs, 1.25, "dropout")


def _window_layer(timing: TimingConfig, N: int) -> Row:
    ours, x = MultiAttention(HEADS * HEAD_DIM, HEADS, causal=True).eval(), torch.randn(1, N, HEADS * HEAD_DIM)
    theirs = partial(pytorch.MultiheadAttention.from_attnlab(ours).fastest_call(N), x)

    def windowed() -> Tensor:
        return ours(x, mask=sliding_window(WINDOW))

    # The first queries attend to the same keys with and without the window.
    torch.testing.assert_close(windowed()[:, :WINDOW], theirs()[:, :WINDOW], rtol=1e-4, atol=1e-5)
    case, baseline = f"window {WINDOW}, {N} tokens, layer, forward", "nn.MultiheadAttention, causal"
    return speed_row(timing, case, baseline, forward(windowed), forward(theirs), 3.5, "window")


def _local(timing: TimingConfig, N: int) -> Iterator[Row]:
    case = f"window {WINDOW}, {N} tokens, attention, forward"
    try:
        attention = load("local-attention").LocalAttention
    except MissingPeerError as error:
        yield NotMeasured(case, "local-attention", text=str(error), goal="local")
        return
    q, k, v = torch.randn(3, 1, HEADS, N, HEAD_DIM)

    def windowed(size: int) -> Tensor:
        return softmax_attention(q, k, v, (causal() & sliding_window(size)).bind(N, shape=(1, HEADS)))

    for exact in (True, False):
        ours = partial(windowed, WINDOW + 1 if exact else WINDOW)
        theirs = partial(attention(WINDOW, causal=True, exact_windowsize=exact, use_rotary_pos_emb=False), q, k, v)
        compared = slice(None) if exact else slice(WINDOW)  # the first block attends to the same keys in both
        torch.testing.assert_close(ours()[:, :, compared], theirs()[:, :, compared], rtol=1e-4, atol=1e-5)
        baseline = f"local-attention, {'exact_windowsize=True' if exact else 'default'}"
        yield speed_row(timing, case, baseline, forward(ours), forward(theirs), 2.5, "local")


def _linear(timing: TimingConfig, N: int) -> Row:
    """Features: softmax of queries, exponentials of keys; a column of ones gives the normalizer."""
    case, baseline = f"linear attention, {N} tokens, attention, forward", "performer-pytorch, causal"
    try:
        attention = load("performer-pytorch").FastAttention
    except MissingPeerError as error:
        return NotMeasured(case, baseline, text=str(error), goal="linear")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has no CUDA code
        layer = attention(HEAD_DIM, causal=True, no_projection=True)
    q, k, v = torch.randn(3, 1, HEADS, N, HEAD_DIM)

    def ours() -> Tensor:
        out, _ = linear_scan(q.softmax(-1), k.exp(), F.pad(v, (0, 1), value=1.0))
        return out[..., :-1] / out[..., -1:]

    theirs = partial(layer, q, k, v)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    return speed_row(timing, case, baseline, forward(ours), forward(theirs), 12.0, "linear")


def _performer(timing: TimingConfig, N: int) -> Row:
    """Random features, without the constants that performer-pytorch adds to them, so that the outputs are equal."""
    case, baseline = f"random features, {N} tokens, attention, forward", "performer-pytorch, causal"
    try:
        package = load("performer-pytorch", "performer_pytorch.performer_pytorch")
    except MissingPeerError as error:
        return NotMeasured(case, baseline, text=str(error), goal="linear")
    layer, mask = PerformerAttention(HEADS * HEAD_DIM, HEADS, causal=True), causal().bind(N, shape=(1, HEADS))
    q, k, v = torch.randn(3, 1, HEADS, N, HEAD_DIM)

    def ours() -> Tensor:
        return layer._attention_map(q, k, mask).apply(v)

    def theirs() -> Tensor:
        kernel = partial(package.softmax_kernel, projection_matrix=layer.projection, eps=0.0)
        return package.causal_linear_attention_noncuda(kernel(q, is_query=True), kernel(k, is_query=False), v, eps=0.0)

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4)
    return speed_row(timing, case, baseline, forward(ours), forward(theirs), 12.0, "linear")


def _causal(timing: TimingConfig, N: int) -> Iterator[Row]:
    q, k, v = _qkv(8, N)

    def ours() -> Tensor:
        return softmax_attention(q, k, v, causal().bind(N, shape=(8, HEADS)))

    theirs = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    for mode, run in {"forward": forward, "forward + backward": backward}.items():
        case = f"causal attention, {N} tokens, {mode}"
        yield speed_row(timing, case, "SDPA, is_causal", run(ours), run(theirs), 1.0)


def _qkv(B: int, N: int) -> list[Tensor]:
    """Queries, keys and values as views of one projection, as in a layer."""
    x = torch.randn(B, N, 3, HEADS, HEAD_DIM, requires_grad=True)
    return [t.transpose(1, 2) for t in x.unbind(2)]
