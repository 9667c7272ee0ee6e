"""bfloat16 on a CUDA device: layers, decoding, sliding windows and padding, against SDPA, FlexAttention, flash-attn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attnlab.bench.timing import TimingConfig, Workload, backward, clock_for, forward, time_interleaved
from attnlab.masks import Mask, causal, padding, sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.nn.cache import KVCache
from attnlab.ops.softmax import softmax_attention
from benchmarks.results import NotMeasured, Row, Speed
from peers.adapters import pytorch

TITLE = "On a GPU"
ABOUT = (
    "bfloat16 on one CUDA device; the outputs are compared first. The clock synchronizes with the device. A shape is "
    "(batch, length, embed_dim, heads). SDPA, FlexAttention (compiled) and flash-attn get the same queries, keys and "
    "values; `nn.MultiheadAttention` is a whole layer with the same parameters."
)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

DEVICE = "cuda"
FLASH = "flash-attn"


@dataclass(frozen=True)
class Sizes:
    """The shapes of whole layers, and the sizes of the other rows."""

    layers: tuple[tuple[int, int, int, int], ...] = ((32, 512, 512, 8), (8, 2048, 1024, 16), (1, 8192, 1024, 16))
    heads: int = 16
    head_dim: int = 64
    length: int = 16384
    window: int = 1024
    cached: int = 8192
    padded: tuple[int, ...] = (2048, 400, 1200, 1800, 256, 800, 1160, 1520)


def missing() -> list[str]:
    """What this machine lacks; without a CUDA device nothing is measured."""
    lines = [] if torch.cuda.is_available() else ["no CUDA device: torch.cuda.is_available() is False"]
    if importlib.util.find_spec("flash_attn") is None:
        lines.append(f"{FLASH} is not installed: pip install flash-attn --no-build-isolation (its rows are left out)")
    return lines


def rows(
    timing: TimingConfig, sizes: Sizes = Sizes(), device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> Iterator[Row]:
    """Layers, sliding windows, padded batches and decoding."""
    if device == "cuda":
        timing = replace(timing, clock=clock_for(device))
    make = partial(torch.randn, device=device, dtype=dtype)
    for shape in sizes.layers:
        for is_causal in (False, True):
            yield from _layer(timing, shape, is_causal, make)
    yield from _window(timing, sizes, make)
    yield from _padded(timing, sizes, make)
    yield from _decoding(timing, sizes, make)


def _layer(
    timing: TimingConfig, shape: tuple[int, int, int, int], is_causal: bool, make: Callable[..., Tensor]
) -> Iterator[Row]:
    B, N, D, H = shape
    x = make(B, N, D, requires_grad=True)
    ours = MultiAttention(D, H, causal=is_causal, device=x.device, dtype=x.dtype)
    theirs = pytorch.MultiheadAttention.from_attnlab(ours)

    def layer_of(attend: Attend) -> Callable[[], Tensor]:
        return lambda: ours.output(attend(*_qkv(ours, x)).transpose(1, 2).flatten(2))

    peers: dict[str, Callable[[], Tensor]] = {
        "nn.MultiheadAttention": partial(theirs.fastest_call(N), x),
        "SDPA": layer_of(partial(F.scaled_dot_product_attention, is_causal=is_causal)),
    }
    if (flash := _flash(x)) is not None:
        peers[FLASH] = layer_of(_heads_second(partial(flash.flash_attn_func, causal=is_causal)))
    case = f"layer {shape}{', causal' if is_causal else ''}"
    yield from _compared(timing, f"{case}, forward", lambda: ours(x), peers, forward)
    yield from _compared(timing, f"{case}, forward + backward", lambda: ours(x), peers, backward)


def _window(timing: TimingConfig, sizes: Sizes, make: Callable[..., Tensor]) -> Iterator[Row]:
    N, H, window = sizes.length, sizes.heads, sizes.window
    q, k, v = (make(1, H, N, sizes.head_dim) for _ in range(3))
    mask = (causal() & sliding_window(window)).bind(N, shape=(1, H), device=q.device)

    peers: dict[str, Callable[[], Tensor]] = {}
    if q.is_cuda:
        peers["FlexAttention"] = _flex(q, k, v, lambda b, h, i, j: (i >= j) & (i - j < window))
    if (flash := _flash(q)) is not None:
        attend = _heads_second(partial(flash.flash_attn_func, causal=True, window_size=(window - 1, 0)))
        peers[FLASH] = partial(attend, q, k, v)
    if N <= 4096:
        allowed = mask.mask.materialize(N, device=q.device)
        peers["SDPA with a mask"] = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=allowed)
    case = f"causal window of {window}, {N} tokens, forward"
    yield from _compared(timing, case, lambda: softmax_attention(q, k, v, mask), peers, forward)


def _padded(timing: TimingConfig, sizes: Sizes, make: Callable[..., Tensor]) -> Iterator[Row]:
    lengths = torch.tensor(sizes.padded, device=make(1).device)
    B, N, D = len(sizes.padded), max(sizes.padded), sizes.heads * sizes.head_dim
    x = make(B, N, D)
    ours = MultiAttention(D, sizes.heads, device=x.device, dtype=x.dtype).eval()
    theirs = ours.to_torch().eval()
    ignored = torch.arange(N, device=x.device) >= lengths[:, None]
    mask: Mask = padding(lengths, mask_queries=True)

    def zeroed(out: Tensor) -> Tensor:
        return out.masked_fill(ignored.unsqueeze(-1), 0.0)

    peers: dict[str, Callable[[], Tensor]] = {
        "nn.MultiheadAttention": lambda: zeroed(theirs(x, x, x, key_padding_mask=ignored, need_weights=False)[0])
    }
    if (flash := _flash(x)) is not None:
        starts = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)

        def packed() -> Tensor:
            q, k, v = ours.qkv(x[~ignored]).unflatten(-1, (3, sizes.heads, -1)).unbind(1)
            heads = flash.flash_attn_varlen_func(q, k, v, starts, starts, N, N)
            return x.new_zeros(B, N, D).masked_scatter(~ignored.unsqueeze(-1), ours.output(heads.flatten(1)))

        peers[f"{FLASH}, variable length"] = packed
    share = sum(sizes.padded) / (B * N)
    case = f"{B} sequences padded to {N}, {share:.0%} real, layer, forward"
    yield from _compared(timing, case, lambda: zeroed(ours(x, mask=mask)), peers, forward)


def _decoding(timing: TimingConfig, sizes: Sizes, make: Callable[..., Tensor]) -> Iterator[Row]:
    N, H, D = sizes.cached, sizes.heads, sizes.heads * sizes.head_dim
    x = make(1, N + 1, D)
    ours = MultiAttention(D, H, causal=True, device=x.device, dtype=x.dtype).eval()
    cache = KVCache(N + 1)
    with torch.no_grad():
        ours(x[:, :-1], cache=cache)
        _, keys, values = (t.contiguous() for t in _qkv(ours, x))

    def step() -> Tensor:
        out: Tensor = ours(x[:, -1:], cache=cache)
        cache.crop(N - 1)
        return out

    def step_of(attend: Attend) -> Callable[[], Tensor]:
        def run() -> Tensor:
            q, keys[:, :, -1:], values[:, :, -1:] = _qkv(ours, x[:, -1:])
            return ours.output(attend(q, keys, values).transpose(1, 2).flatten(2))

        return run

    peers = {"SDPA on a preallocated cache": step_of(F.scaled_dot_product_attention)}
    if (flash := _flash(x)) is not None:
        peers[f"{FLASH}, KV cache"] = step_of(_heads_second(flash.flash_attn_with_kvcache))
    yield from _compared(timing, f"one token after {N}, layer", step, peers, forward)


def _compared(
    timing: TimingConfig,
    case: str,
    ours: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], Tensor]],
    mode: Callable[[Callable[[], Tensor]], Workload],
) -> Iterator[Row]:
    """Compare the outputs, then the times: one row per peer."""
    with torch.no_grad():
        expected = ours()
        tolerance = 2e-2 if expected.dtype == torch.bfloat16 else 1e-4
        for run in peers.values():
            torch.testing.assert_close(run(), expected, rtol=tolerance, atol=tolerance)
    if peers:
        ratios, control = time_interleaved(mode(ours), {name: mode(run) for name, run in peers.items()}, timing)
        yield from (Speed(case, name, ratio=ratio, control=control) for name, ratio in ratios.items())
    if not any(name.startswith(FLASH) for name in peers):
        yield NotMeasured(case, FLASH, text=f"{FLASH} is not installed, or there is no CUDA device")


def _flash(x: Tensor) -> Any:
    """The module flash_attn, None if it is not installed or the tensor is not on a CUDA device."""
    if not x.is_cuda or importlib.util.find_spec("flash_attn") is None:
        return None
    return importlib.import_module("flash_attn")


def _qkv(layer: MultiAttention, x: Tensor) -> list[Tensor]:
    """Queries, keys and values, (B, H, N, d) each, as views of the projection."""
    return [t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in layer.qkv(x).chunk(3, -1)]


def _heads_second(attend: Callable[..., Tensor]) -> Attend:
    """Call a function of flash-attn, which takes (B, N, H, d), with tensors (B, H, N, d)."""
    return lambda q, k, v: attend(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, rule: Callable[..., Tensor]) -> Callable[[], Tensor]:
    blocks = create_block_mask(rule, None, None, q.shape[2], k.shape[2], device=q.device)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=blocks)
