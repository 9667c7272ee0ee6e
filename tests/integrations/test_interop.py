"""Every mechanism with torch.func, autocast and the exporters. Sizes are primes.

`test_contract` checks compiling, exporting and copying of every mechanism.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.catalog import registry
from attnlab.checks import check_attention
from attnlab.masks import Mask, from_tensor, padding
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import Attention

B, N, D = 3, 7, 24
SLOWLY = pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's, of its own kernel under vmap
NAMES = REPRESENTATIVES


def make(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(D, **options).double().eval()


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ways(name: str) -> list[tuple[Attention, Mask | None]]:
    """The layer without a mask, and causal with a mask where it supports them."""
    found: list[tuple[Attention, Mask | None]] = [(make(name), None)]
    supports = found[0][0].card.supports
    seen = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) > 0.4
    if "arbitrary_mask" in supports:
        found.append((make(name, causal="causal" in supports), from_tensor(seen | torch.eye(N, dtype=torch.bool))))
    elif "causal" in supports:
        found.append((make(name, causal=True), None))
    return found


def asked(layer: Attention, mask: Mask | None) -> dict[str, Any]:
    return {} if mask is None else {"mask": mask}


def loss(layer: Attention, mask: Mask | None, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(layer, weights, (x,), asked(layer, mask)).square().sum()


# torch.func


@SLOWLY
@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_items_equals_the_batch(name: str) -> None:
    for layer, mask in ways(name):
        expected = layer(tokens(), **asked(layer, mask))
        found = vmap(lambda x: layer(x.unsqueeze(0), **asked(layer, mask)).squeeze(0))(tokens())  # noqa: B023
        assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_functional_call_has_the_gradients_of_autograd(name: str) -> None:
    for layer, mask in ways(name):
        layer(tokens(), **asked(layer, mask)).square().sum().backward()
        found = grad(partial(loss, layer, mask))(dict(layer.named_parameters()), tokens())
        assert found.keys() == dict(layer.named_parameters()).keys()
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None
            assert (found[key] - parameter.grad).abs().max() < 1e-10


@SLOWLY
@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients(name: str) -> None:
    for layer, mask in ways(name):
        weights = {key: parameter.detach() for key, parameter in layer.named_parameters()}
        whole = grad(partial(loss, layer, mask))(weights, tokens())

        def one(weights: dict[str, Tensor], x: Tensor, of: tuple[Any, Any] = (layer, mask)) -> Tensor:
            return loss(*of, weights, x.unsqueeze(0))

        each = vmap(grad(one), in_dims=(None, 0))(weights, tokens())
        for key, total in whole.items():
            assert each[key].shape == (B, *total.shape)
            assert (each[key].sum(0) - total).abs().max() < 1e-10


@SLOWLY
@pytest.mark.parametrize("name", NAMES)
def test_an_ensemble_by_vmap(name: str) -> None:
    layers = [make(name) for _ in range(2)]
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.add_(0.1)
    weights, buffers = stack_module_state(layers)  # type: ignore[arg-type]
    base = deepcopy(layers[0])

    def run(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(base, (weights, buffers), (x,))
        return out

    found = vmap(run, in_dims=(0, 0, None))(weights, buffers, tokens())
    for out, layer in zip(found, layers, strict=True):
        assert (out - layer(tokens())).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's, on the first use of forward mode
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_derivative(name: str) -> None:
    """The fused kernels of PyTorch do not support forward mode, the math backend does."""
    for layer, mask in ways(name):
        x, direction = tokens(), torch.randn(B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        run = partial(layer, **asked(layer, mask))
        with sdpa_kernel(SDPBackend.MATH):
            out, slope = jvp(run, (x,), (direction,))
        step = 1e-5
        numeric = (run(x + step * direction) - run(x - step * direction)) / (2 * step)
        assert (out - run(x)).abs().max() < 1e-12
        assert (slope - numeric).abs().max() < 1e-6 * max(1.0, numeric.abs().max().item())


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    for layer, mask in ways(name):
        layer.float()
        outs, slopes = [], []
        for enabled in (False, True):
            x = tokens().float().requires_grad_()
            with torch.autocast("cpu", dtype, enabled=enabled):
                out = layer(x, **asked(layer, mask))
            out.float().square().sum().backward()
            assert out.dtype == (dtype if enabled else torch.float32)
            assert x.grad is not None
            assert x.grad.dtype == torch.float32
            outs.append(out.float())
            slopes.append(x.grad)
        coarse = 30 * torch.finfo(dtype).eps
        assert 0 < (outs[1] - outs[0]).abs().max() < coarse * outs[0].abs().max()
        assert 0 < (slopes[1] - slopes[0]).abs().max() < coarse * slopes[0].abs().max()


# The exporters, with options that no mechanism has by default

PLACED: dict[str, Any] = {
    "alibi": partial(MultiAttention, positions="alibi"),
    "t5": partial(MultiAttention, positions="t5"),
    "grouped, rotary": partial(GroupedQueryAttention, num_kv_heads=1, head_dim=6, positions="rotary"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLACED)
def test_positions_are_exported(kind: str) -> None:
    check_attention(PLACED[kind], only=["export_matches_eager", "onnx_matches_eager"])


class Padded(nn.Module):
    """A module that takes lengths and creates the padding mask itself."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out: Tensor = self.layer(x, mask=padding(lengths))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multihead", "groupedquery", "latent", "slidingwindow", "longformer"])
def test_a_mask_created_in_the_module_is_exported(name: str) -> None:
    asked = Padded(make(name, causal=True))
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=64)
    shapes = ({0: batch, 1: length}, {0: batch})
    program = torch.export.export(asked, (tokens(), torch.tensor([7, 4, 2])), dynamic_shapes=shapes).module()
    for lengths in (torch.tensor([5, 3, 0]), torch.tensor([11, 2])):
        x = tokens(11)[: len(lengths)]
        assert (program(x, lengths) - asked(x, lengths)).abs().max() < 1e-12


def test_an_exported_program_can_be_trained() -> None:
    layer = make("multihead")
    shapes = ({0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)},)
    program = torch.export.export(layer, (tokens(),), dynamic_shapes=shapes).module()
    for module in (layer, program):
        module(tokens(5)).square().sum().backward()
    found = dict(program.named_parameters())
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert found[name].grad is not None
        assert (found[name].grad - parameter.grad).abs().max() < 1e-10  # type: ignore[operator]


def test_a_module_that_contains_a_layer_is_copied_and_cast() -> None:
    model = nn.Sequential(make("multihead"), nn.LayerNorm(D, dtype=torch.float64), make("groupedquery"))
    copied = deepcopy(model).to(torch.bfloat16)
    assert next(model.parameters()).dtype == torch.float64
    assert copied(tokens().bfloat16()).dtype == torch.bfloat16
