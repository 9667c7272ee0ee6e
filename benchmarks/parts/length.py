"""Time and peak memory of a layer as the sequence grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.checks import allocations
from attnlab.masks import sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.ops.scan import linear_scan
from benchmarks.pairing import Pace, forward, seconds
from benchmarks.results import Growth, Memory, Row

TITLE = "Growth with the length"
ABOUT = (
    "A forward pass of one sequence, embed_dim 512, 8 heads of 64, in eval mode under `inference_mode`. All layers "
    "and lengths take turns; the median counts. The linear layer has the same projections around `linear_scan` "
    "(Katharopoulos et al. 2020: elu + 1 of queries and keys). Peak memory is what a pass allocates at its most "
    "beyond weights and input, from every allocation and release that PyTorch's profiler saw."
)

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
D, H, WINDOW = 512, 8, 256
LIMIT = 1.15

THEIRS = "nn.MultiheadAttention, eval"
FULL, WINDOWED, LINEAR = "softmax, causal", f"window {WINDOW}, causal", "linear, causal"


class LinearAttention(nn.Module):
    """``φ(q) · Σ φ(k) v / φ(q) · Σ φ(k)`` over what was seen, between the projections of the other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.output = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D // H)).transpose(1, 3).unbind(2)
        out, _ = linear_scan(F.elu(q) + 1, F.elu(k) + 1, F.pad(v, (0, 1), value=1.0))
        heads = out[..., :-1] / out[..., -1:]
        return self.output(heads.transpose(1, 2).flatten(2))


def rows(pace: Pace, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Row]:
    """The curves of time and of memory, and the memory beside theirs at the longest."""
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
    works = {(name, N): forward(partial(run, x)) for name, run in layers.items() for N, x in inputs.items()}
    times = seconds(works, pace)
    peaks = {key: allocations.peak(work) for key, work in works.items()}
    for quantity, values in {"time": times, "peak memory": peaks}.items():
        for name in layers:
            curve = [values[name, N] for N in lengths]
            bounded = name in (WINDOWED, LINEAR)
            yield Growth(
                name, quantity, list(lengths), curve, LIMIT if bounded else None, goal="growth" if bounded else ""
            )
    what, against = f"the layer, {lengths[-1]:,} tokens, peak memory", f"{THEIRS}, its fast path"
    peak = allocations.peak(forward(partial(ours, longest)))
    yield Memory(what, against, peak, int(peaks[THEIRS, lengths[-1]]), 15.0, "memory")
