"""A layer can be built without memory on the meta device, filled later, and built on a device in a dtype at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import Subject, first_line
from attnlab.checks.probes import difference, not_finite, worst
from attnlab.checks.registry import Measure, promise

LENGTH = 67


@promise("leaves the meta device", needs=("contract",))
def meta_device(subject: Subject) -> Measure:
    """The difference between a layer and one built on the meta device that loaded its state_dict.

    By ``to_empty`` and ``load_state_dict``, by ``load_state_dict(assign=True)``, and by `torch.nn.utils.skip_init`.
    Memory that is not initialized is filled with NaN.
    """
    cls, options = subject.constructor

    def emptied(given: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = _on_meta(subject, given).to_empty(device=subject.device)
        _fill_with_nan(layer)
        layer.load_state_dict(state)
        return layer

    def assigned(given: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = _on_meta(subject, given)
        layer.load_state_dict(state, assign=True)
        return layer

    def skipped(given: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = torch.nn.utils.skip_init(cls, **options, **given, dtype=torch.float64, device=subject.device)
        _fill_with_nan(layer)
        layer.load_state_dict(state)
        return layer

    ways: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], nn.Module]] = {
        "to_empty and load_state_dict": emptied,
        "load_state_dict(assign=True)": assigned,
    }
    if isinstance(cls, type) and "device" in inspect.signature(cls).parameters:  # which skip_init asks for
        ways["skip_init"] = skipped

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            given = {"causal": causality} if subject.can_choose("causal") else {}
            layer, x = subject.build(causality), subject.tokens(length=LENGTH)
            for how, build in ways.items():
                try:
                    found = subject(build(given, layer.state_dict()).eval(), x)
                except NotClaimed:
                    raise
                except Exception as error:
                    raise Broken(f"{first_line(error)} ({how})") from error
                yield difference(found, subject(layer, x)), how

    return worst(measured(), 0)


@promise("reset_parameters sets every parameter", needs=("contract",))
def reset(subject: Subject) -> Measure:
    """How many parameters, buffers and outputs are NaN after ``reset_parameters`` of a layer that was never set.

    Also the difference between two layers reset with the same seed.
    """

    def measured() -> Iterator[tuple[float, str]]:
        outs = []
        for seed in (0, 0, 1):
            layer = _on_meta(subject, {}).to_empty(device=subject.device)
            _fill_with_nan(layer)
            torch.manual_seed(seed)
            layer.reset_parameters()  # type: ignore[operator]
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if tensor.is_floating_point():
                    yield float(not_finite(tensor)), f"{name} is not set"
            outs.append(subject(layer.to(torch.float64).eval(), subject.tokens()))
            yield float(not_finite(outs[-1])), "the output is not finite"
        yield difference(outs[0], outs[1]), "two layers reset with one seed differ"
        yield float(torch.equal(outs[0], outs[2])), "two layers reset with different seeds are the same"

    return worst(measured(), 0)


@promise("constructors take device= and dtype=", needs=("contract",))
def factory_options(subject: Subject) -> Measure:
    """How many parameters and floating-point buffers are on another device, or of another dtype, than asked for."""

    def measured() -> Iterator[tuple[float, str]]:
        for device in (subject.device, torch.device("meta")):
            for dtype in (torch.float64, torch.bfloat16):
                layer = subject.construct(device=device, dtype=dtype)
                for name, tensor in layer.named_parameters():
                    wrong = tensor.device.type != device.type or tensor.dtype != dtype
                    yield float(wrong), f"{name} is {tensor.dtype} on {tensor.device}, not {dtype} on {device}"
        layer, x = subject.construct(device=subject.device, dtype=torch.float64), subject.tokens()
        yield float(subject(layer, x).dtype != torch.float64), "the output has another dtype"

    return worst(measured(), 0)


def _on_meta(subject: Subject, options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        layer = subject.construct(**options)
    left = [name for name, tensor in layer.named_parameters() if not tensor.is_meta]
    if left:
        raise Broken(f"{', '.join(left)} is not on the meta device under torch.device('meta')")
    return layer.to(torch.float64)


def _fill_with_nan(layer: nn.Module) -> None:
    """In place of memory that is not initialized, which may hold zeros by chance."""
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
