"""One new token after a context."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.bench.peers import MissingPeerError, adapter, load
from attnlab.bench.timing import TimingConfig, Workload, forward
from attnlab.models.multihead import MultiAttention
from attnlab.nn.cache import KVCache
from attnlab.ops.softmax import softmax_attention
from benchmarks.results import NotMeasured, Row, speed_row

TITLE = "Decoding"
ABOUT = (
    "One new token after a context, embed_dim 512, 8 heads of 64, under `inference_mode`. A step updates the cache, "
    "attends, and crops the cache again, so that every step has the same context. Hugging Face: the attention of GPT-2 "
    "with `sdpa`, a `DynamicCache` and the same parameters. The outputs are compared first. *attention* is the op "
    "without projections."
)

D, H = 512, 8


def rows(timing: TimingConfig, context: int = 2048) -> Iterator[Row]:
    """Whole layers against Hugging Face and against ``torch.cat``, and grouped keys without projections."""
    ours = MultiAttention(D, H, causal=True).eval()
    for B in (1, 8):
        yield _dynamic_cache(timing, ours, torch.randn(B, context + 1, D))
    yield _concatenated(timing, ours, torch.randn(1, context + 1, D))
    yield _grouped(timing, context)


def _step(ours: MultiAttention, x: Tensor) -> Workload:
    """One step of ours: the last token of ``x``, the others are cached."""
    cache = KVCache(2 * x.shape[1])
    with torch.inference_mode():
        ours(x[:, :-1], cache=cache)

    def step() -> Tensor:
        out: Tensor = ours(x[:, -1:], cache=cache)
        cache.crop(cache.num_seen - 1)
        return out

    return step


def _dynamic_cache(timing: TimingConfig, ours: MultiAttention, x: Tensor) -> Row:
    case, baseline = f"one token after {x.shape[1] - 1}, batch {len(x)}, layer", "Hugging Face, DynamicCache"
    try:
        layer, cache = adapter("transformers").Gpt2.from_attnlab(ours).inner.eval(), load("transformers").DynamicCache()
    except MissingPeerError as error:
        return NotMeasured(case, baseline, text=str(error), goal="decoding")
    new = x[:, -1:].contiguous()  # its projection needs contiguous input
    with torch.inference_mode():
        layer(x[:, :-1].contiguous(), cache)

    def theirs() -> Tensor:
        out: Tensor = layer(new, cache)[0]
        cache.crop(-1)
        return out

    return _compare(timing, case, baseline, 2.5, _step(ours, x), theirs, "decoding")


def _concatenated(timing: TimingConfig, ours: MultiAttention, x: Tensor) -> Row:
    """The same layer with a cache that is a new tensor in every step."""
    with torch.inference_mode():
        _, K, V = ours._project_qkv(x[:, :-1], None)

    def theirs() -> Tensor:
        q, k, v = ours._project_qkv(x[:, -1:], None)
        heads = F.scaled_dot_product_attention(q, torch.cat([K, k], 2), torch.cat([V, v], 2))
        return ours.output(heads.transpose(1, 2).flatten(2))

    case = f"one token after {x.shape[1] - 1}, batch {len(x)}, layer"
    return _compare(timing, case, "keys and values concatenated by torch.cat", 1.0, _step(ours, x), theirs)


def _grouped(timing: TimingConfig, context: int, kv_heads: int = 2) -> Row:
    q, (k, v) = torch.randn(1, H, 1, D // H), torch.randn(2, 1, kv_heads, context, D // H)
    ours = partial(softmax_attention, q, k, v)
    theirs = partial(F.scaled_dot_product_attention, q, k, v, enable_gqa=True)
    case = f"one query, {context} keys, {kv_heads} of {H} key heads, attention"
    return _compare(timing, case, "SDPA, enable_gqa", 1.6, ours, theirs, "grouped")


def _compare(
    timing: TimingConfig, case: str, baseline: str, target: float, ours: Workload, theirs: Workload, goal: str = ""
) -> Row:
    with torch.inference_mode():
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    return speed_row(timing, case, baseline, forward(ours), forward(theirs), target, goal)
