"""The forward pass reads no value in Python: it runs on fake and meta tensors, and it can be traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnlab.checks.layer_under_test import LayerUnderTest, N
from attnlab.checks.probes import describe, difference, located
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, padding, sliding_window

TOLERANCE = 1e-9
LENGTH = 67

MakeMask = Callable[[torch.device], Mask | None]


@check("traceable", needs=("export",), limit=TOLERANCE)
def traceable(case: LayerUnderTest) -> Values:
    """The number of outputs on fake and meta tensors with a wrong shape, dtype or device; the error of make_fx graphs.

    Causal and with masks, in eval mode and in training.
    """
    for length, is_causal in product((N, LENGTH), case.causal_choices):
        for make_mask in _masks(case, length):
            mask, x = make_mask(case.device), case.tokens(length=length)
            plain = mask is None and is_causal == case.causal_choices[-1]
            for name, trace in _TRACES.items():
                if trace is not _fake and (length != N or (name == "make_fx, fake" and not plain)):
                    continue  # takes seconds and detects what the others detect
                for train in ((False, True) if plain else (True,)) if trace is _fake else (False,):
                    layer = case.build(is_causal, train=train)
                    where = f"{name}, {length} tokens ({describe(is_causal, mask)})"
                    with warnings.catch_warnings(action="ignore"), located(where):  # the tracer's own deprecations
                        value = trace(case, layer, x, make_mask)
                    yield value, where


def _masks(case: LayerUnderTest, length: int) -> list[MakeMask]:
    """Functions that make a mask on a device; under FakeTensorMode the tensors of the mask are fake as well."""
    makers: list[MakeMask] = [lambda device: None]
    if "padding" in case.capabilities:
        makers.append(lambda device: padding(torch.tensor([length, length - 3], device=device)))
    if "arbitrary_mask" in case.capabilities:
        makers.append(lambda device: causal() & sliding_window(5))
    return makers


def _fake(case: LayerUnderTest, layer: nn.Module, x: Tensor, make_mask: MakeMask) -> float:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in layer.state_dict().items()}
        with nn.utils.stateless._reparametrize_module(layer, state):
            out = case(layer, mode.from_tensor(x), make_mask(x.device))
    return float(out.shape != x.shape or out.dtype != x.dtype or out.device != x.device)


def _meta(case: LayerUnderTest, layer: nn.Module, x: Tensor, make_mask: MakeMask) -> float:
    inputs = x.to("meta")
    out = case(layer.to("meta"), inputs, make_mask(inputs.device))
    return float(out.shape != x.shape or out.dtype != x.dtype or not out.is_meta)


def _graph(
    case: LayerUnderTest, layer: nn.Module, x: Tensor, make_mask: MakeMask, mode: Literal["real", "fake"] = "real"
) -> float:
    mask = make_mask(x.device)
    graph = make_fx(partial(case, layer, mask=mask), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    other = 2 * x.flip(0)
    return difference(graph(other), case(layer, other, mask))


_TRACES: dict[str, Callable[[LayerUnderTest, nn.Module, Tensor, MakeMask], float]] = {
    "FakeTensorMode": _fake,
    "make_fx, real": _graph,
    "make_fx, fake": partial(_graph, mode="fake"),
    "the meta device": _meta,
}
