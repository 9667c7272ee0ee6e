"""Time and peak memory of a layer as the sequence grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.bench.timing import TimingConfig, forward, median_seconds
from attnlab.checks import allocations
from attnlab.masks import sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.ops.scan import linear_scan
from benchmarks.results import Growth, Memory, Row

TITLE = "Growth with the length"
ABOUT = (
    "A forward pass of one sequence, embed_dim 512, 8 heads of 64, in eval mode under `inference_mode`; medians of "
    "interleaved runs. The linear layer has the same projections and `linear_scan` (Katharopoulos et al. 2020: "
    "elu + 1 of queries and keys). Peak memory is the maximum that a pass allocates in addition to parameters and "
    "input, from every allocation and release that the profiler of PyTorch records."
)

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
D, H, WINDOW = 512, 8, 256
LIMIT = 1.15

THEIRS = "nn.MultiheadAttention, eval"
FULL, WINDOWED, LINEAR = "softmax, causal", f"window {WINDOW}, causal", "linear, causal"


class LinearAttention(nn.Module):
    """Causal linear attention with the projections of the other layers; a column of ones gives the normalizer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.output = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D // H)).transpose(1, 3).unbind(2)
        out, _ = linear_scan(F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0))
        heads = out[..., :-1] / out[..., -1:]
        return self.output(heads.transpose(1, 2).flatten(2))


def rows(timing: TimingConfig, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Row]:
    """Time and peak memory by length, and the peak memory of full attention at the longest."""
    theirs = nn.MultiheadAttention(D, H, batch_first=True).eval()
    ours, causal = (MultiAttention.from_torch(theirs, causal=causal).eval() for causal in (False, True))
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        THEIRS: lambda x: theirs(x, x, x, need_weights=False)[0],
        FULL: causal,
        WINDOWED: lambda x: causal(x, mask=sliding_window(WINDOW)),
        LINEAR: LinearAttention().eval(),
    }
    inputs = {N: torch.randn(1, N, D) for N in lengths}
    shortest, longest = inputs[lengths[0]], inputs[lengths[-1]]
    with torch.inference_mode():
        torch.testing.assert_close(ours(shortest), layers[THEIRS](shortest), rtol=1e-4, atol=1e-5)
    workloads = {(name, N): forward(partial(layer, x)) for name, layer in layers.items() for N, x in inputs.items()}
    times = median_seconds(workloads, timing)
    peaks: dict[Any, float] = {key: allocations.peak(workload) for key, workload in workloads.items()}
    for quantity, values in {"time": times, "peak memory": peaks}.items():
        for name in layers:
            curve = [values[name, N] for N in lengths]
            limit, goal = (LIMIT, "growth") if name in (WINDOWED, LINEAR) else (None, "")
            yield Growth(name, quantity=quantity, lengths=list(lengths), values=curve, limit=limit, goal=goal)
    case, baseline = f"peak memory of the layer, {lengths[-1]:,} tokens", f"{THEIRS}, fast path"
    peak = allocations.peak(forward(partial(ours, longest)))
    yield Memory(case, baseline, ours=peak, theirs=int(peaks[THEIRS, lengths[-1]]), target=15.0, goal="memory")
