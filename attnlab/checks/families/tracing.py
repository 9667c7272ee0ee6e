"""No value is read in Python: a forward pass runs on tensors that hold none, and is traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attnlab.checks.capabilities import Broken
from attnlab.checks.layer import N, Subject, first_line
from attnlab.checks.probes import difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, padding, sliding_window

SAME = 1e-9
LENGTH = 67

MakeMask = Callable[[torch.device], Mask | None]


@promise("traceable", needs=("export",))
def traceable(subject: Subject) -> Measure:
    """How many outputs under FakeTensorMode and on the meta device differ in shape, dtype or device; make_fx = eager.

    Causal and under masks, in eval and in training.
    """

    def measured() -> Iterator[tuple[float, str]]:
        for length in (N, LENGTH):
            for causality in subject.causal_choices:
                for make_mask in _masks(subject, length):
                    mask, x = make_mask(subject.device), subject.tokens(length=length)
                    for how, trace in _TRACES.items():
                        plain = mask is None and causality == subject.causal_choices[-1]
                        if trace is not _fake and (length != N or (how == "make_fx, fake" and not plain)):
                            continue  # seconds more, for what the others show
                        for train in ((False, True) if plain else (True,)) if trace is _fake else (False,):
                            layer = subject.build(causality, train=train)
                            where = f"{how}, {length} tokens ({said(causality, mask)})"
                            try:
                                yield trace(subject, layer, x, make_mask), where
                            except Exception as error:
                                raise Broken(f"{first_line(error)} ({where})") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own deprecations are not the layer's
        return worst(measured(), SAME)


def _masks(subject: Subject, length: int) -> list[MakeMask]:
    """Functions that make a mask on a device, called where the tensors of the mask must be fake as well."""
    makers: list[MakeMask] = [lambda device: None]
    if "padding" in subject.claims:
        makers.append(lambda device: padding(torch.tensor([length, length - 3], device=device)))
    if "arbitrary_mask" in subject.claims:
        makers.append(lambda device: causal() & sliding_window(5))
    return makers


def _fake(subject: Subject, layer: nn.Module, x: Tensor, make_mask: MakeMask) -> float:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in layer.state_dict().items()}
        inputs = mode.from_tensor(x)
        with nn.utils.stateless._reparametrize_module(layer, state):
            out = subject(layer, inputs, make_mask(x.device))
    return float(out.shape != x.shape or out.dtype != x.dtype or out.device != x.device)


def _meta(subject: Subject, layer: nn.Module, x: Tensor, make_mask: MakeMask) -> float:
    inputs = x.to("meta")
    out = subject(layer.to("meta"), inputs, make_mask(inputs.device))
    return float(out.shape != x.shape or out.dtype != x.dtype or not out.is_meta)


def _graph(mode: Literal["real", "fake"]) -> Callable[[Subject, nn.Module, Tensor, MakeMask], float]:
    def trace(subject: Subject, layer: nn.Module, x: Tensor, make_mask: MakeMask) -> float:
        mask = make_mask(x.device)
        graph = make_fx(lambda x: subject(layer, x, mask), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
        other = 2 * x.flip(0)
        return difference(graph(other), subject(layer, other, mask))

    return trace


_TRACES = {
    "FakeTensorMode": _fake,
    "make_fx, real": _graph("real"),
    "make_fx, fake": _graph("fake"),
    "the meta device": _meta,
}
