"""Layers can be built on the meta device and filled later, and with ``device=`` and ``dtype=``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import CheckFailed
from attnlab.checks.layer_under_test import LayerUnderTest
from attnlab.checks.probes import calling, difference, largest, not_finite
from attnlab.checks.registry import Measurement, check

LENGTH = 67


@check("meta_device_initialization", needs=("contract",))
def meta_device(case: LayerUnderTest) -> Measurement:
    """The difference between a layer and one built on the meta device that loaded its state_dict.

    By ``to_empty`` and ``load_state_dict``, by ``load_state_dict(assign=True)``, and by `torch.nn.utils.skip_init`.
    Uninitialized memory is filled with NaN.
    """
    cls, fixed = case.constructor

    def to_empty(options: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = _fill_with_nan(_on_meta(case, options).to_empty(device=case.device))
        layer.load_state_dict(state)
        return layer

    def assign(options: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = _on_meta(case, options)
        layer.load_state_dict(state, assign=True)
        return layer

    def skip_init(options: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        layer = torch.nn.utils.skip_init(cls, **fixed, **options, dtype=torch.float64, device=case.device)
        _fill_with_nan(layer).load_state_dict(state)
        return layer

    methods: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], nn.Module]] = {
        "to_empty and load_state_dict": to_empty,
        "load_state_dict(assign=True)": assign,
    }
    if isinstance(cls, type) and "device" in inspect.signature(cls).parameters:  # required by skip_init
        methods["skip_init"] = skip_init

    def measure() -> Iterator[tuple[float, str]]:
        for is_causal in case.causal_choices:
            options = {"causal": is_causal} if case.can_choose("causal") else {}
            layer, x = case.build(is_causal), case.tokens(length=LENGTH)
            for name, build in methods.items():
                out = calling(lambda: case(build(options, layer.state_dict()).eval(), x), name)  # noqa: B023
                yield difference(out, case(layer, x)), name

    return largest(measure(), 0)


@check("reset_parameters_sets_all", needs=("contract",))
def reset_parameters(case: LayerUnderTest) -> Measurement:
    """The number of parameters, buffers and outputs that are NaN after ``reset_parameters`` of an uninitialized layer.

    Also the difference between two layers that were reset with the same seed.
    """

    def measure() -> Iterator[tuple[float, str]]:
        outs = []
        for seed in (0, 0, 1):
            layer = _fill_with_nan(_on_meta(case, {}).to_empty(device=case.device))
            torch.manual_seed(seed)
            layer.reset_parameters()  # type: ignore[operator]
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                if tensor.is_floating_point():
                    yield float(not_finite(tensor)), f"{name} is not set"
            outs.append(case(layer.to(torch.float64).eval(), case.tokens()))
            yield float(not_finite(outs[-1])), "the output is not finite"
        yield difference(outs[0], outs[1]), "two layers that were reset with the same seed differ"
        yield float(torch.equal(outs[0], outs[2])), "two layers that were reset with different seeds are equal"

    return largest(measure(), 0)


@check("device_and_dtype_arguments", needs=("contract",))
def device_and_dtype(case: LayerUnderTest) -> Measurement:
    """The number of parameters whose device or dtype is not the one passed to the constructor."""

    def measure() -> Iterator[tuple[float, str]]:
        for device in (case.device, torch.device("meta")):
            for dtype in (torch.float64, torch.bfloat16):
                layer = case.construct(device=device, dtype=dtype)
                for name, tensor in layer.named_parameters():
                    wrong = tensor.device.type != device.type or tensor.dtype != dtype
                    yield float(wrong), f"{name} is {tensor.dtype} on {tensor.device}, not {dtype} on {device}"
        layer, x = case.construct(device=case.device, dtype=torch.float64), case.tokens()
        yield float(case(layer, x).dtype != torch.float64), "the output has another dtype"

    return largest(measure(), 0)


def _on_meta(case: LayerUnderTest, options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        layer = case.construct(**options)
    real = [name for name, tensor in layer.named_parameters() if not tensor.is_meta]
    if real:
        raise CheckFailed(f"{', '.join(real)} is not on the meta device under torch.device('meta')")
    return layer.to(torch.float64)


def _fill_with_nan(layer: nn.Module) -> nn.Module:
    """Replace uninitialized memory, which may hold zeros by chance."""
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    return layer
