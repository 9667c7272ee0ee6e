"""Whole layers: ours and those of other libraries, for several shapes, causal and not, in three modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.bench.peers import LAYERS, MissingPeerError
from attnlab.bench.timing import TimingConfig, backward, forward, time_interleaved
from attnlab.models.multihead import MultiAttention
from benchmarks.results import NotMeasured, Row, Speed

TITLE = "Whole layers"
ABOUT = (
    "Self-attention with the same four projections and the same parameters; the outputs are compared first. A shape is "
    "(batch, length, embed_dim, heads), float32. *forward* and *forward + backward* run in training mode, without "
    "dropout; *forward, eval* in eval mode under `inference_mode`, where `nn.MultiheadAttention` uses its fast path "
    "if it is not causal. x-transformers has no bias; ours has one, which is zero."
)

SHAPES = [(32, 16, 64, 4), (8, 128, 128, 8), (8, 512, 512, 8), (1, 2048, 512, 8), (1, 8192, 512, 8)]
"""(batch, length, embed_dim, heads)"""

LONG = 2048
"""The fast path of ``nn.MultiheadAttention`` materializes the attention weights; from this length on it has a goal of
its own."""

MODES: dict[str, Callable[[Callable[[], Tensor]], Callable[[], Any]]] = {
    "forward": lambda run: run,
    "forward, eval": forward,
    "forward + backward": backward,
}
"""Training mode with its graph, eval mode under ``inference_mode``, training with its backward pass."""

BASELINES = {
    "torch": "nn.MultiheadAttention",
    "x-transformers": "x-transformers, flash=True",
    "transformers": "Hugging Face, sdpa",
    "keras": "Keras",
}
"""The name of the baseline of each goal; the goals are keys of `attnlab.bench.peers.LAYERS`."""


def rows(timing: TimingConfig, shapes: list[tuple[int, int, int, int]] = SHAPES) -> Iterator[Row]:
    """One row per shape, causal or not, mode and baseline."""
    for shape in shapes:
        for causal in (False, True):
            yield from _rows(shape, causal, timing)


def _rows(shape: tuple[int, int, int, int], causal: bool, timing: TimingConfig) -> Iterator[Row]:
    B, N, D, H = shape
    ours, x = MultiAttention(D, H, causal=causal), torch.randn(B, N, D)
    name = f"{shape}{', causal' if causal else ''}"
    layers: dict[str, Any] = {}
    for goal, baseline in BASELINES.items():
        try:
            layers[goal] = LAYERS[goal](ours)
        except MissingPeerError as error:
            yield NotMeasured(name, baseline, text=str(error), goal=goal)
    calls = {goal: layer.fastest_call(N) for goal, layer in layers.items()}
    for call in calls.values():
        torch.testing.assert_close(call(x), ours(x), rtol=1e-4, atol=1e-5)
    x.requires_grad_()
    for mode, run in MODES.items():
        evaluating = mode == "forward, eval"
        for layer in (ours, *layers.values()):
            layer.train(not evaluating)
        workloads = {goal: run(partial(call, x)) for goal, call in calls.items()}
        ratios, control = time_interleaved(run(partial(ours, x)), workloads, timing)
        for goal, ratio in ratios.items():
            case, baseline, target = f"{name}, {mode}", BASELINES[goal], 1.0
            if goal == "torch" and evaluating and not causal:
                baseline += ", fast path"
                if N >= LONG:
                    goal, target = "fast-path", 1.4
            floor = None if goal == "fast-path" else 0.95
            yield Speed(case, baseline, ratio=ratio, control=control, target=target, floor=floor, goal=goal)
