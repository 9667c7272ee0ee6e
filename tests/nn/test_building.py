"""Parameters are initialized by `reset_parameters` as by the constructor; parts take a device and a dtype.

The checks ``meta_device_initialization`` and ``device_and_dtype_arguments`` build every mechanism on other devices.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES

from attnlab.catalog import registry
from attnlab.nn.attention import Attention
from attnlab.nn.multihead import OutputGate, QKNorm
from attnlab.positions import T5Bias

D = 48

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in REPRESENTATIVES}
for _name in REPRESENTATIVES:
    _kinds = next((o.annotation for o in registry.entry(_name).options if o.name == "positions"), "")
    LAYERS |= {
        f"{_name}, {kind}": (_name, {"positions": kind}) for kind in ("rotary", "alibi", "t5") if f"'{kind}'" in _kinds
    }
LAYERS["latent, yarn"] = ("latent", {"positions": "rotary(scaling=yarn, factor=4, original=64)", "q_latent_dim": 11})
every_layer = pytest.mark.parametrize("case", LAYERS)


def build(case: str, seed: int = 0, **options: Any) -> Attention:
    name, layer_options = LAYERS[case]
    torch.manual_seed(seed)
    return registry.load(name)(embed_dim=D, **layer_options, **options)


@every_layer
def test_reset_parameters_matches_the_constructor(case: str) -> None:
    built = [build(case, seed=seed) for seed in range(5)]
    drawn = []
    for seed in range(5):
        layer = copy.deepcopy(built[0])
        for tensor in layer.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
        torch.manual_seed(seed)
        layer.reset_parameters()
        drawn.append(layer)
    for name, tensor in built[0].state_dict().items():
        reset, initial = (torch.stack([m.state_dict()[name].double() for m in many]) for many in (drawn, built))
        assert reset.isfinite().all(), name
        if not tensor.is_floating_point():
            assert (reset >= 0).all(), name
            assert len(reset.unique()) > 1, name
            continue
        assert (initial.std() == 0) == (reset.std() == 0), name
        torch.testing.assert_close(reset.std(), initial.std(), rtol=0.35, atol=1e-6, msg=name)
        torch.testing.assert_close(
            reset.mean(), initial.mean(), rtol=0, atol=0.35 * initial.std().item() + 1e-6, msg=name
        )


@pytest.mark.parametrize("make", [QKNorm, OutputGate, T5Bias])
def test_submodules_take_a_device_and_a_dtype(make: Any) -> None:
    arguments = {QKNorm: (8,), OutputGate: (D, 3, 8), T5Bias: (3,)}[make]
    layer = make(*arguments, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in layer.parameters())


@pytest.mark.parametrize("name", registry.names())
def test_device_and_dtype_are_not_options_of_a_run(name: str) -> None:
    parameters = inspect.signature(registry.load(name)).parameters
    assert parameters["device"].default is parameters["dtype"].default is None
    assert not {"device", "dtype"} & {option.name for option in registry.entry(name).options}
