"""What is measured: a training step, a prefill, or one token of decoding, of layers and of networks.

Axes: B batch, N length, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attnlab.bench.timing import backward, forward
from attnlab.network import Network
from attnlab.nn.cache import DecodingCache, restore, snapshot
from attnlab.nn.card import UnsupportedError
from attnlab.nn.layer_caches import LayerCaches
from attnlab.nn.mixer import SequenceMixer

Phase = Literal["training", "prefill", "decode"]
PHASES: tuple[Phase, ...] = get_args(Phase)

Autocast = Callable[[], AbstractContextManager[Any]]
"""Returns the context of the forward passes."""


class Layers(nn.Module):
    """Layers one after the other, all but the first with a residual connection; called with caches as a `Network` is.

    Args:
        layers: the layers, first to last.
    """

    def __init__(self, layers: Sequence[SequenceMixer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, caches: Sequence[DecodingCache | None] | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); with ``caches``, ``x`` continues the cached tokens."""
        for i, layer in enumerate(self.layers):
            out = layer(x, cache=None if caches is None else caches[i])
            x = x + out if i else out
        return x

    def mechanisms(self) -> list[SequenceMixer]:
        """The layers, first to last."""
        return list(self.layers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Workload:
    """A call that is measured; ``cache_bytes`` is the memory of the caches that it continues."""

    run: Callable[[], Any]
    cache_bytes: int = 0

    def __call__(self) -> Any:
        """Run it once."""
        return self.run()


def workload(model: nn.Module, x: Tensor, phase: Phase, autocast: Autocast = nullcontext) -> Workload:
    """Return the call that is measured; it sets the training mode of the model.

    - *training*: a forward and a backward pass of the sum of the outputs.
    - *prefill*: a forward pass without gradients; it fills new caches if the model has any.
    - *decode*: one token, the last of ``x``, after all earlier tokens of ``x`` were cached. The caches are taken back
      after every call, so that each call decodes the same token.

    Args:
        model: a `Network`, `Layers`, or any module that maps ``x`` to a tensor. A module that has ``mechanisms()`` and
            takes ``caches`` as a `Network` does can decode; another may have ``decoder(x)``, which returns the call and
            the memory of its cache in bytes.
        x: the batch, (B, N, ...).
        phase: what is measured.
        autocast: the context of forward passes in mixed precision.

    Raises:
        UnsupportedError: for decoding without caches.
        ValueError: for decoding with fewer than two tokens.
    """

    def call(*args: Any, **options: Any) -> Tensor:
        with autocast():
            return model(*args, **options)

    model.train(phase == "training")
    if phase == "training":
        leaf = x.detach().requires_grad_(x.requires_grad)  # keeps the gradient away from the caller's tensor
        return Workload(backward(lambda: call(leaf)))
    if phase == "prefill":
        if not _can_decode(model):
            return Workload(forward(lambda: call(x)))
        return Workload(forward(lambda: call(x, caches=_caches(model, x.shape[1]))))
    if x.shape[1] < 2:
        raise ValueError("decoding needs at least one token before the new one")
    with torch.inference_mode():
        if hasattr(model, "decoder"):
            decoder: Any = model.decoder
            run, cache_bytes = decoder(x)
            return Workload(forward(run), cache_bytes)
        caches, new = _caches(model, x.shape[1]), x[:, -1:].detach()
        if x.shape[1] > 2:
            call(x[:, :-2], caches=caches)
        call(x[:, -2:-1], caches=caches)  # alone, so that a window has dropped what a long prompt left behind
    before = [snapshot(cache) for cache in caches]

    def step() -> Tensor:
        out = call(new, caches=caches)
        for cache, attributes in zip(caches, before, strict=True):
            restore(cache, attributes)
        return out

    return Workload(forward(step), caches.bytes)


def _can_decode(model: nn.Module) -> bool:
    try:
        _caches(model, 1)
    except UnsupportedError:
        return False
    return True


def _caches(model: Any, capacity: int) -> LayerCaches:
    """Empty caches for this number of tokens; raises UnsupportedError with the reason if the model has none."""
    if not hasattr(model, "mechanisms"):
        raise UnsupportedError(f"{type(model).__name__} has no cache that is known here")
    if isinstance(model, Network) and model.outputs.kind != "tokens":
        raise UnsupportedError("the network has one output per sequence, not one per token")
    layers: list[SequenceMixer] = model.mechanisms()
    caches = LayerCaches(layer.make_cache(capacity, window=layer.cache_window) for layer in layers)
    for layer in layers:
        if not layer.causal:
            raise UnsupportedError(f"{type(layer).__name__} is not causal here, and only causal layers decode")
    return caches
