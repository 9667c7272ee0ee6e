"""Layers can be built on the meta device and filled later, and with ``device=`` and ``dtype=``."""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import torch
from torch import nn

from attnlab.checks.capabilities import CheckFailed
from attnlab.checks.layer_under_test import LayerUnderTest
from attnlab.checks.probes import difference, located, not_finite
from attnlab.checks.registry import Values, check

LENGTH = 67


@check("meta_device_initialization", needs=("contract",))
def meta_device(case: LayerUnderTest) -> Values:
    """The difference between a layer and one built on the meta device that loaded its state_dict.

    By ``to_empty`` and ``load_state_dict``, by ``load_state_dict(assign=True)``, and by `torch.nn.utils.skip_init`.
    Uninitialized memory is filled with NaN.
    """
    cls, fixed = case.constructor
    methods = ["to_empty and load_state_dict", "load_state_dict(assign=True)"]
    if isinstance(cls, type) and "device" in inspect.signature(cls).parameters:  # required by skip_init
        methods.append("skip_init")
    for is_causal, method in product(case.causal_choices, methods):
        options = {"causal": is_causal} if case.can_choose("causal") else {}
        expected, x = case.build(is_causal), case.tokens(length=LENGTH)
        with located(method):
            if method == "skip_init":
                layer = nn.utils.skip_init(cls, **fixed, **options, dtype=torch.float64, device=case.device)
            else:
                layer = _on_meta(case, options)
            if method == "to_empty and load_state_dict":
                layer = layer.to_empty(device=case.device)
            assign = method == "load_state_dict(assign=True)"
            (layer if assign else _fill_with_nan(layer)).load_state_dict(expected.state_dict(), assign=assign)
            out = case(layer.eval(), x)
        yield difference(out, case(expected, x)), method


@check("reset_parameters_sets_all", needs=("contract",))
def reset_parameters(case: LayerUnderTest) -> Values:
    """The number of parameters, buffers and outputs that are NaN after ``reset_parameters`` of an uninitialized layer.

    Also the difference between two layers that were reset with the same seed.
    """
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


@check("device_and_dtype_arguments", needs=("contract",))
def device_and_dtype(case: LayerUnderTest) -> Values:
    """The number of parameters whose device or dtype is not the one passed to the constructor."""
    for device, dtype in product((case.device, torch.device("meta")), (torch.float64, torch.bfloat16)):
        for name, tensor in case.construct(device=device, dtype=dtype).named_parameters():
            wrong = tensor.device.type != device.type or tensor.dtype != dtype
            yield float(wrong), f"{name} is {tensor.dtype} on {tensor.device}, not {dtype} on {device}"
    layer, x = case.construct(device=case.device, dtype=torch.float64), case.tokens()
    yield float(case(layer, x).dtype != torch.float64), "the output has another dtype"


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
