"""Every mechanism with torch.func, autocast and torch.export. Forward-mode derivatives, compilation, export and copies
of a mechanism are checks of the conformance suite.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from attnlab.catalog import registry
from attnlab.checks import check_attention
from attnlab.masks import Mask, from_tensor, padding
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import Attention

B, N, D = 3, 7, 24
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # a kernel of PyTorch under vmap


def make(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    return registry.load(name)(D, **options).double().eval()


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ways(name: str) -> list[tuple[Attention, Mask | None]]:
    """The layer without a mask, and if supported causal and with a mask."""
    layer = make(name)
    supports = layer.card.supports
    if not {"causal", "arbitrary_mask"} & {*supports}:
        return [(layer, None)]
    allowed = torch.rand(N, N, generator=torch.Generator().manual_seed(2)) > 0.4
    mask = from_tensor(allowed | torch.eye(N, dtype=torch.bool)) if "arbitrary_mask" in supports else None
    return [(layer, None), (make(name, causal="causal" in supports), mask)]


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_vmap_and_grad_of_a_functional_call(name: str) -> None:
    for layer, mask in ways(name):
        out = layer(tokens(), mask=mask)
        out.square().sum().backward()
        mapped = vmap(lambda x: layer(x.unsqueeze(0), mask=mask).squeeze(0))(tokens())  # noqa: B023
        assert (mapped - out).abs().max() < 1e-12

        def loss(weights: dict[str, Tensor], x: Tensor, of: tuple[Attention, Mask | None] = (layer, mask)) -> Tensor:
            return functional_call(of[0], weights, (x.unsqueeze(0),), {"mask": of[1]}).square().sum()

        weights = {key: parameter.detach() for key, parameter in layer.named_parameters()}
        each = vmap(grad(loss), in_dims=(None, 0))(weights, tokens())
        for key, parameter in layer.named_parameters():
            assert parameter.grad is not None
            assert each[key].shape == (B, *parameter.shape)
            assert (each[key].sum(0) - parameter.grad).abs().max() < 1e-10


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_an_ensemble_in_one_call(name: str) -> None:
    layers = [make(name) for _ in range(2)]
    with torch.no_grad():
        for parameter in layers[1].parameters():
            parameter.add_(0.1)
    states: Any = stack_module_state(layers)  # type: ignore[arg-type]
    base, x = deepcopy(layers[0]), tokens()
    outs = vmap(lambda *state: functional_call(base, state, (x,)))(*states)
    for out, layer in zip(outs, layers, strict=True):
        assert (out - layer(x)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    for layer, mask in ways(name):
        layer.float()
        outs, slopes = [], []
        for enabled in (False, True):
            x = tokens().float().requires_grad_()
            with torch.autocast("cpu", dtype, enabled=enabled):
                out = layer(x, mask=mask)
            assert out.dtype == (dtype if enabled else torch.float32)
            outs.append(out.float())
            slopes += torch.autograd.grad(out.float().square().sum(), x)
        coarse = 30 * torch.finfo(dtype).eps
        for exact, rounded in (outs, slopes):
            assert rounded.dtype == torch.float32
            assert 0 < (rounded - exact).abs().max() < coarse * exact.abs().max()


# The exporters, with parts that no mechanism has by default


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "build"),
    [  # the exporter to ONNX calls torch.export; the operations of ALiBi are among those of T5
        ("export_matches_eager", partial(MultiAttention, positions="alibi")),
        ("onnx_matches_eager", partial(MultiAttention, positions="t5")),
        ("onnx_matches_eager", partial(GroupedQueryAttention, num_kv_heads=1, head_dim=6, positions="rotary")),
    ],
)
def test_positions_are_exported(check: str, build: Any) -> None:
    check_attention(build, only=[check])


class Padded(nn.Module):
    """Builds the padding mask from the lengths inside of the exported program."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out: Tensor = self.layer(x, mask=padding(lengths))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multihead", "groupedquery", "latent", "slidingwindow", "longformer"])
def test_an_exported_program_builds_its_mask_and_trains(name: str) -> None:
    module = Padded(make(name, causal=True))
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=64)
    shapes = ({0: batch, 1: length}, {0: batch})
    program = torch.export.export(module, (tokens(), torch.tensor([7, 4, 2])), dynamic_shapes=shapes).module()
    for lengths in (torch.tensor([5, 3, 0]), torch.tensor([11, 2])):
        outs = [call(tokens(11)[: len(lengths)], lengths) for call in (program, module)]
        assert (outs[0] - outs[1]).abs().max() < 1e-12
        gradients = [
            torch.autograd.grad(out.square().sum(), [*call.parameters()])
            for out, call in zip(outs, (program, module), strict=True)
        ]
        assert all((a - b).abs().max() < 1e-10 for a, b in zip(*gradients, strict=True))
