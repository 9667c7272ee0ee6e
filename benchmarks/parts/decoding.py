"""One token more, after many."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from attnlab.nn.cache import KVCache
from attnlab.ops.softmax import softmax_attention
from benchmarks import peers
from benchmarks.pairing import Pace, Work, forward, race
from benchmarks.peers import Missing
from benchmarks.results import Absent, Row, Speed

TITLE = "Decoding"
ABOUT = (
    "One token more after a context, embed_dim 512, 8 heads of 64, under `inference_mode`. A step appends to the "
    "cache, attends, and is taken back, so that every step has the same context. Hugging Face: GPT-2's attention "
    "with `sdpa` and a `DynamicCache`, the same weights. The outputs are compared first."
)

D, H = 512, 8


def rows(pace: Pace, context: int = 2048) -> Iterator[Row]:
    """A whole layer against Hugging Face's, against one that joins its keys anew, and the core with grouped keys."""
    ours = MultiAttention(D, H, causal=True).eval()
    for B in (1, 8):
        yield _dynamic_cache(pace, ours, torch.randn(B, context + 1, D))
    yield _joined(pace, ours, torch.randn(1, context + 1, D))
    yield _grouped(pace, context)


def _step(ours: MultiAttention, x: Tensor) -> Work:
    """Our step: the last token of ``x``, with the others in a cache."""
    cache = KVCache(2 * x.shape[1])
    with torch.inference_mode():
        ours(x[:, :-1], cache=cache)

    def step() -> Tensor:
        out: Tensor = ours(x[:, -1:], cache=cache)
        cache.crop(cache.num_seen - 1)
        return out

    return step


def _dynamic_cache(pace: Pace, ours: MultiAttention, x: Tensor) -> Row:
    what, against = f"one token after {x.shape[1] - 1}, batch {len(x)}, the layer", "Hugging Face, DynamicCache"
    try:
        theirs, cache = peers.transformers_decoder(ours), peers.load("transformers").DynamicCache()
    except Missing as missing:
        return Absent(what, against, str(missing), "decoding")
    new = x[:, -1:].contiguous()  # its projection takes no other
    with torch.inference_mode():
        theirs(x[:, :-1].contiguous(), cache)

    def peer() -> Tensor:
        out: Tensor = theirs(new, cache)[0]
        cache.crop(-1)
        return out

    return _compared(pace, what, against, 2.5, _step(ours, x), peer, "decoding")


def _joined(pace: Pace, ours: MultiAttention, x: Tensor) -> Row:
    """The same layer, with keys and values that are joined anew each step."""
    with torch.inference_mode():
        _, K, V = ours._project_qkv(x[:, :-1], None)

    def peer() -> Tensor:
        q, k, v = ours._project_qkv(x[:, -1:], None)
        heads = F.scaled_dot_product_attention(q, torch.cat([K, k], 2), torch.cat([V, v], 2))
        return ours.output(heads.transpose(1, 2).flatten(2))

    what, against = (
        f"one token after {x.shape[1] - 1}, batch {len(x)}, the layer",
        "keys and values joined by torch.cat",
    )
    return _compared(pace, what, against, 1.0, _step(ours, x), peer)


def _grouped(pace: Pace, context: int, kv_heads: int = 2) -> Row:
    q, (k, v) = torch.randn(1, H, 1, D // H), torch.randn(2, 1, kv_heads, context, D // H)

    def ask() -> Tensor:
        return softmax_attention(q, k, v)

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    what = f"one query, {context} keys, {kv_heads} of {H} key heads, the core"
    return _compared(pace, what, "SDPA, enable_gqa", 1.6, ask, peer, "grouped")


def _compared(pace: Pace, what: str, against: str, target: float, ours: Work, theirs: Work, goal: str = "") -> Row:
    with torch.inference_mode():
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    found, control = race(forward(ours), {against: forward(theirs)}, pace)
    return Speed(what, against, found[against], control, target, goal=goal)
