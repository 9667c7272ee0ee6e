"""Precision, memory and derivatives of the scan, and the transforms of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from scans import KINDS, B, H, d, scan_case, w
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.ops import scan
from attnlab.ops.scan import linear_scan

DECAYING = [kind for kind in KINDS if "scalar" in kind or "vector" in kind]


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan.blocks, "BLOCK", {"cpu": 16})


def low_precision_scan(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The plain recurrence with a state in the precision of its inputs."""
    state, outs = q.new_zeros(B, H, d, w), []
    for t in range(q.shape[2]):
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outs.append((q[:, :, t, None] @ state).squeeze(2))
    return torch.stack(outs, 2), state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, form: str) -> None:
    low = {name: x.abs().to(dtype) for name, x in scan_case("plain", 701).items() if name != "state"}
    expected, last = linear_scan(**{name: x.double() for name, x in low.items()})

    def errors(out: Tensor, state: Tensor) -> tuple[float, float]:
        return ((out.double() - expected) / expected).abs().max().item(), ((state - last) / last).abs().max().item()

    out, state = linear_scan(**low, form=form)
    assert out.dtype == dtype
    assert state.dtype == torch.float32
    rounding = torch.finfo(dtype).eps  # the output is rounded once
    out_error, state_error = errors(out, state)
    assert out_error < rounding
    assert state_error < 1e-5
    out_error, state_error = errors(*low_precision_scan(**low))
    assert out_error > 5 * rounding
    assert state_error > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_change_the_precision(kind: str, short_blocks: None) -> None:
    case = {name: x.requires_grad_() for name, x in scan_case(kind, 37, torch.float32).items()}
    expected = linear_scan(**case, chunk=4)
    expected_gradients = torch.autograd.grad(expected[0].square().sum(), tuple(case.values()))
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_scan(**case, chunk=4)
        gradients = torch.autograd.grad(result[0].square().sum(), tuple(case.values()))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=0)


def test_mixed_dtypes() -> None:
    case = scan_case("delta rule, scalar decay", 13)
    mixed = {name: x.bfloat16() if name in "qkv" else x.float() for name, x in case.items()}
    out, state = linear_scan(**mixed)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    out, state = linear_scan(**{**mixed, "log_decay": case["log_decay"], "state": case["state"]})
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", DECAYING)
@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_strong_decay_is_exact(kind: str, form: str, dtype: torch.dtype, short_blocks: None) -> None:
    """Weak decay after a strong one: a difference of two long sums would lose precision."""
    exact = scan_case(kind, 67)
    strengths = torch.tensor([0.0, -1e-3, -0.3, -30.0, -1e4, -torch.inf], dtype=torch.float64)
    index = torch.randint(6, exact["log_decay"].shape, generator=torch.Generator().manual_seed(3))
    exact["log_decay"] = strengths[index]

    def run(case: dict[str, Tensor], form: str) -> Iterable[Tensor]:
        case = {name: x.clone().requires_grad_() for name, x in case.items()}
        out, state = linear_scan(**case, form=form, chunk=32)
        with torch.autograd.set_detect_anomaly(True):  # raises for a NaN in between too
            return out, state, *torch.autograd.grad(out.square().sum() + state.sum(), tuple(case.values()))

    expected = run(exact, "recurrent")
    results = run({name: x.to(dtype) for name, x in exact.items()}, form)
    for result, exact_result in zip(results, expected, strict=True):
        assert result.isfinite().all()
        error = (result.double() - exact_result).abs().max() / exact_result.abs().max()
        assert error < (1e-13 if dtype == torch.float64 else 3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_numerical_and_second_gradients(kind: str, short_blocks: None) -> None:
    names, tensors = zip(*scan_case(kind, 19).items(), strict=True)
    leaves = tuple(x[:1] if x.dim() > 1 else x for x in tensors)
    leaves = tuple(x.clone().requires_grad_() for x in leaves)

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return linear_scan(**dict(zip(names, values, strict=True)), chunk=8)

    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["plain", "constant decay", "delta rule, vector decay"])
def test_gradients_of_single_inputs(kind: str, short_blocks: None) -> None:
    case = scan_case(kind, 37)
    everything = {name: x.clone().requires_grad_() for name, x in case.items()}
    expected = torch.autograd.grad(linear_scan(**everything, chunk=4)[0].square().sum(), tuple(everything.values()))
    for (name, x), gradient in zip(case.items(), expected, strict=True):
        alone = x.clone().requires_grad_()
        out, _ = linear_scan(**{**case, name: alone}, chunk=4)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), alone)[0], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_and_grad(kind: str, short_blocks: None) -> None:
    one, two = scan_case(kind, 37), scan_case(kind, 37, seed=1)
    both = {name: torch.stack([one[name], two[name]]) for name in one}

    def loss(case: dict[str, Tensor]) -> Tensor:
        out, state = linear_scan(**case, chunk=4)
        return out.square().sum() + state.sum()

    losses, gradients = torch.func.vmap(torch.func.grad_and_value(loss))(both)[::-1]
    for i, case in enumerate((one, two)):
        leaves = {name: x.clone().requires_grad_() for name, x in case.items()}
        value = loss(leaves)
        torch.testing.assert_close(losses[i], value, rtol=1e-12, atol=0)
        for name, gradient in zip(leaves, torch.autograd.grad(value, tuple(leaves.values())), strict=True):
            torch.testing.assert_close(gradients[name][i], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_saves_the_inputs_and_one_state_per_block(kind: str, short_blocks: None) -> None:
    case = {name: x.requires_grad_() for name, x in scan_case(kind, 160).items()}
    saved: dict[int, int] = {}

    def save(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        linear_scan(**case, chunk=4)
    input_bytes = sum(x.nbytes for x in case.values())
    states = 9 * case["state"].nbytes
    assert input_bytes <= sum(saved.values()) <= input_bytes + states


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.size = max(self.size, x.numel())
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_is_larger_than_the_inputs(kind: str, short_blocks: None) -> None:
    case = {name: x.requires_grad_() for name, x in scan_case(kind, 640).items()}
    with Largest() as largest:
        linear_scan(**case, chunk=4)[0].sum().backward()
    assert largest.size == case["v"].numel()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "vector decay"])
def test_two_compiled_graphs_serve_every_length(kind: str) -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda case: linear_scan(**case, chunk=16), backend=backend, fullgraph=True, dynamic=True)
    for N in (37, 48, 601, 13, 16):
        torch.testing.assert_close(compiled(scan_case(kind, N)), linear_scan(**scan_case(kind, N)), rtol=0, atol=1e-10)
    assert len(graphs) == 2  # many chunks, and one


def test_the_delta_rule_compiles() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda case: linear_scan(**case, chunk=8), backend="eager", fullgraph=True)
    case = scan_case("delta rule, scalar decay", 37)
    torch.testing.assert_close(compiled(case), linear_scan(**case), rtol=0, atol=1e-10)
