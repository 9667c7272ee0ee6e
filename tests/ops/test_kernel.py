"""The kernels with strided inputs, and their derivatives: exact in every order, or an error. Sizes are primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import randn
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.catalog import registry
from attnlab.masks import Mask, causal, padding, sliding_window
from attnlab.models.sinks import SinkAttention
from attnlab.ops.backends.sdpa import MIN_DROPOUT_WEIGHTS, Kernel
from attnlab.ops.softmax import SoftmaxMap, masked_softmax

B, H, N, d = 2, 3, 131, 5
assert H * N * N > MIN_DROPOUT_WEIGHTS


def strided(t: Tensor) -> Tensor:
    """The same tensor with a last stride other than 1."""
    return t.mT.contiguous().mT


@pytest.mark.parametrize("moved", ["q", "k", "v", "matrix", "all"])
@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_strided_inputs(moved: str, with_sink: bool, dropout: float) -> None:
    inputs = {name: torch.randn(B, H, N, d) for name in "qkv"} | {"matrix": torch.randn(1, H, N, N)}
    sink = torch.randn(H) if with_sink else None
    outs = []
    for change in (False, True):
        tensors = [strided(t) if change and moved in (name, "all") else t for name, t in inputs.items()]
        tensors = [t.detach().requires_grad_(i < 3) for i, t in enumerate(tensors)]
        torch.manual_seed(0)
        out = Kernel(0.3, sink, dropout)(*tensors)
        gradients = torch.autograd.grad((out * torch.randn(B, N, H, d).transpose(1, 2)).sum(), tensors[:3])
        outs.append([out, *gradients])
    torch.testing.assert_close(*reversed(outs))


def test_rotary_positions_of_two_features_and_a_sink() -> None:
    torch.manual_seed(0)
    layer, x = SinkAttention(8, 4, positions="rotary"), torch.randn(2, 300, 8)
    torch.testing.assert_close(layer(x), layer.apply_weights(layer.attention_weights(x), x), rtol=0, atol=1e-6)
    weights, values = layer.attention_map(x), torch.randn(2, 4, 11, 300).mT
    torch.testing.assert_close(weights.apply(values), weights.materialize() @ values, rtol=1e-5, atol=1e-5)


# Second derivatives


def heads(name: str) -> dict[str, int]:
    options = {option.name for option in registry.entry(name).options}
    return {option: count for option, count in {"num_heads": 3, "num_kv_heads": 1}.items() if option in options}


def test_the_hessian_of_a_sink() -> None:
    torch.manual_seed(0)
    layer, x = SinkAttention(8, 2).double(), torch.randn(1, 3, 8, dtype=torch.float64)

    def run(z: Tensor) -> Tensor:
        return torch.tanh(layer(z)).sum()

    hessian = torch.autograd.functional.hessian(run, x)
    assert hessian.abs().max() > 0.01
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(hessian, torch.autograd.functional.hessian(run, x))


def inputs(length: int = N) -> list[Tensor]:
    return randn(*[(1, H, length, d)] * 3, (H,))


@pytest.mark.parametrize("matrix", [None, "causal", "Boolean", "float"])
@pytest.mark.parametrize("kind", ["sink", "dropout"])
def test_second_derivatives_are_exact(kind: str, matrix: str | None) -> None:
    leaves = inputs()
    mask: Any = None
    if matrix in ("Boolean", "float"):
        mask = torch.rand(1, 1, N, N, generator=torch.Generator().manual_seed(1)) > 0.3
        mask[..., 2, :] = False
        mask = (
            mask if matrix == "Boolean" else torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        )

    def run(q: Tensor, k: Tensor, v: Tensor, *sink: Tensor) -> Tensor:
        torch.manual_seed(7)
        kernel = Kernel(0.4, *sink) if sink else Kernel(0.4, dropout=0.3)
        return kernel(q, k, v, mask, causal=matrix == "causal").tanh()

    assert torch.autograd.gradgradcheck(run, tuple(leaves if kind == "sink" else leaves[:3]), fast_mode=True)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_backward_with_create_graph_matches_grad() -> None:
    results = []
    for how in ("grad", "backward"):
        q, k, v, sink = inputs(7)
        out = Kernel(0.4, sink)(q, k, v).tanh().sum()
        if how == "grad":
            (gradient,) = torch.autograd.grad(out, q, create_graph=True)
            results.append(torch.autograd.grad(gradient.square().sum(), (q, k, v, sink)))
        else:
            out.backward(create_graph=True, inputs=[q])
            gradient, q.grad = q.grad, None
            gradient.square().sum().backward()
            results.append(tuple(t.grad for t in (q, k, v, sink)))
    torch.testing.assert_close(*results)


MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": causal(),
    "window": causal() & sliding_window(7),
    "padding": padding(torch.tensor([97]), mask_queries=True),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # raised by PyTorch in forward-mode AD
@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("case", MASKS)
def test_every_derivative_under_the_math_backend(name: str, case: str) -> None:
    if case in ("causal", "window") and name not in supporting("arbitrary_mask"):
        pytest.skip("it does not take every mask")
    torch.manual_seed(0)
    layer = registry.load(name)(embed_dim=12, dropout=0.25, **heads(name)).double()
    if case in ("causal", "window") and not layer.supports("arbitrary_mask"):
        pytest.skip("it does not take every mask")
    x = torch.randn(1, N, 12, dtype=torch.float64)
    direction, other = torch.randn_like(x), torch.randn_like(x)

    def run(z: Tensor) -> Tensor:
        torch.manual_seed(5)
        return layer(z, mask=MASKS[case])

    def slope(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad((run(z).tanh() * other).sum(), z, create_graph=True)[0]

    with sdpa_kernel(SDPBackend.MATH):
        step = 1e-6
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(x, direction))).tangent
        with torch.no_grad():
            expected = (run(x + step * direction) - run(x - step * direction)) / (2 * step)
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)
        z = x.clone().requires_grad_()
        first = torch.autograd.grad((run(z).tanh() * other).sum(), z, create_graph=True)[0]
        second = torch.autograd.grad((first * direction).sum(), z)[0]
        expected = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
        torch.testing.assert_close(second, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_second_derivatives_are_exact_or_an_error(name: str, dropout: float) -> None:
    torch.manual_seed(0)
    layer = registry.load(name)(embed_dim=12, dropout=dropout, causal=True, **heads(name)).double()
    x = torch.randn(1, N, 12, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)

    def slope(z: Tensor, graph: bool) -> Tensor:
        torch.manual_seed(5)
        return torch.autograd.grad(layer(z).tanh().sum(), z, create_graph=graph)[0]

    try:
        second = torch.autograd.grad((slope(x, True) * direction).sum(), x)[0]
    except RuntimeError as error:
        assert "is not implemented" in str(error) or "derivative" in str(error)  # noqa: PT017
        return
    near = [slope((x + sign * 1e-6 * direction).detach().requires_grad_(), False) for sign in (1, -1)]
    torch.testing.assert_close(second, (near[0] - near[1]) / 2e-6, rtol=1e-5, atol=1e-6)


def test_attention_map_takes_strided_values() -> None:
    q, k, v, sink = inputs()
    values = strided(v)
    torch.testing.assert_close(
        SoftmaxMap(q, k, sink=sink).apply(values), masked_softmax(q @ k.mT / d**0.5, sink=sink) @ v
    )
