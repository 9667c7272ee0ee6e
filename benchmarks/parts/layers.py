"""Whole layers: ours against the same layer of others, every shape, causal and not, three ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from attnlab.models.multihead import MultiAttention
from benchmarks import peers
from benchmarks.pairing import Pace, backward, forward, race
from benchmarks.peers import Missing, Peer
from benchmarks.results import Absent, Row, Speed

TITLE = "The layer against the layers of others"
ABOUT = (
    "Self-attention with the same four projections and the same weights; the outputs are compared first. A shape is "
    "(batch, length, embed_dim, heads), float32. *forward* and *forward + backward* run in training mode, without "
    "dropout; *forward, eval* in eval mode under `inference_mode`, where `nn.MultiheadAttention` takes its fast "
    "path when it is not causal. x-transformers knows no bias; ours, of zeros, is added all the same."
)

SHAPES = [(32, 16, 64, 4), (8, 128, 128, 8), (8, 512, 512, 8), (1, 2048, 512, 8), (1, 8192, 512, 8)]
"""(batch, length, embed_dim, heads)"""

LONG = 2048
"""From here on the fast path of ``nn.MultiheadAttention``, which writes the whole map down, has its own goal."""


def rows(pace: Pace, shapes: list[tuple[int, int, int, int]] = SHAPES) -> Iterator[Row]:
    """Every shape, causal and not, every way, every peer."""
    for shape in shapes:
        for causal in (False, True):
            yield from _rows(shape, causal, pace)


def _makers(shape: tuple[int, int, int, int]) -> dict[str, Callable[[MultiAttention], Peer]]:
    """How each peer is made from our layer."""
    B, N, D, _ = shape
    return {
        "torch": lambda ours: peers.torch_layer(ours, N),
        "x-transformers": peers.x_transformers_layer,
        "transformers": peers.transformers_layer,
        "keras": lambda ours: peers.keras_layer(ours, (B, N, D)),
    }


WAYS = {"forward": lambda run: run, "forward, eval": forward, "forward + backward": backward}
"""Training mode and its graph, eval mode under ``inference_mode``, training with its backward pass."""

NAMES = {
    "torch": "nn.MultiheadAttention",
    "x-transformers": "x-transformers, flash=True",
    "transformers": "Hugging Face, sdpa",
    "keras": "Keras",
}


def _rows(shape: tuple[int, int, int, int], causal: bool, pace: Pace) -> Iterator[Row]:
    B, N, D, H = shape
    ours, x = MultiAttention(D, H, causal=causal), torch.randn(B, N, D)
    where = f"{shape}{', causal' if causal else ''}"
    made: dict[str, Peer] = {}
    for name, make in _makers(shape).items():
        try:
            made[name] = make(ours)
        except Missing as missing:
            yield Absent(where, NAMES[name], str(missing), name)
    for peer in made.values():
        torch.testing.assert_close(peer.run(x), ours(x), rtol=1e-4, atol=1e-5)
    if not made:
        return
    x.requires_grad_()
    for way, run in WAYS.items():
        evaluating = way == "forward, eval"
        for module in (ours, *(peer.module for peer in made.values())):
            module.train(not evaluating)
        theirs = {name: run(partial(peer.run, x)) for name, peer in made.items()}
        found, control = race(run(partial(ours, x)), theirs, pace)
        for name, ratio in found.items():
            against, what = NAMES[name], f"{where}, {way}"
            if name == "torch" and evaluating and not causal:
                against += ", its fast path"
                if N >= LONG:
                    yield Speed(what, against, ratio, control, 1.4, goal="fast-path")
                    continue
            yield Speed(what, against, ratio, control, 1.0, 0.95, goal=name)
