"""Layers are built on any device and in any dtype, also uninitialized, and their parameters can be reset."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES
from torch import Tensor, nn

from attnlab.catalog import registry
from attnlab.nn.attention import Attention
from attnlab.nn.multihead import OutputGate, QKNorm
from attnlab.positions import T5Bias

D, N = 48, 17

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


def tokens() -> Tensor:
    return torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))


@every_layer
@pytest.mark.parametrize("method", ["to_empty", "assign", "skip_init"])
def test_a_layer_leaves_the_meta_device(case: str, method: str) -> None:
    expected = build(case)
    if method == "skip_init":
        name, options = LAYERS[case]
        made = nn.utils.skip_init(registry.load(name), embed_dim=D, **options)
        made.load_state_dict(expected.state_dict())
    else:
        with torch.device("meta"):
            made = build(case, seed=1)
        assert all(t.is_meta for t in made.state_dict().values())
        if method == "to_empty":
            made = made.to_empty(device="cpu")
            made.load_state_dict(expected.state_dict())
        else:
            made.load_state_dict(expected.state_dict(), assign=True)
    torch.testing.assert_close(made(tokens()), expected(tokens()), rtol=0, atol=0)


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


@every_layer
def test_constructors_take_a_device_and_a_dtype(case: str) -> None:
    made = build(case, device="meta", dtype=torch.bfloat16)
    floats = [t for t in made.state_dict().values() if t.is_floating_point()]
    assert floats
    assert all(t.is_meta for t in made.state_dict().values())
    assert all(t.dtype == torch.bfloat16 for t in floats)
    x = tokens().double()
    assert build(case, dtype=torch.float64)(x).dtype == torch.float64


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
