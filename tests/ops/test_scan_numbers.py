"""Precision, memory and derivatives of the scan, and the transforms of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scans import KINDS, B, Case, H, d, leaves, scan_case, w
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.ops.scan import linear_scan

every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("short_blocks")


def loss(case: Case) -> Tensor:
    out, state = linear_scan(**case, chunk=4)
    return out.square().sum() + state.sum()


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
    low = {name: x.abs().to(dtype) for name, x in scan_case("plain", 701, started=False).items()}
    expected = linear_scan(**{name: x.double() for name, x in low.items()})
    rounding = torch.finfo(dtype).eps  # the output is rounded once

    def errors(results: tuple[Tensor, Tensor]) -> list[float]:
        pairs = zip(results, expected, strict=True)
        return [((result.double() - exact) / exact).abs().max().item() for result, exact in pairs]

    out, state = linear_scan(**low, form=form)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    out_error, state_error = errors((out, state))
    assert out_error < rounding
    assert state_error < 1e-5
    out_error, state_error = errors(low_precision_scan(**low))
    assert out_error > 5 * rounding
    assert state_error > 1e-3


@every_kind
def test_autocast_does_not_change_the_precision(kind: str) -> None:
    case = leaves(scan_case(kind, 37, torch.float32))
    value = loss(case)
    with torch.autocast("cpu", torch.bfloat16):
        other = loss(case)
        gradients = torch.autograd.grad(other, tuple(case.values()))
    assert torch.equal(other, value)
    torch.testing.assert_close(gradients, torch.autograd.grad(value, tuple(case.values())), rtol=0, atol=0)


def test_mixed_dtypes() -> None:
    case = scan_case("delta rule, scalar decay", 13)
    mixed = {name: x.bfloat16() if name in "qkv" else x.float() for name, x in case.items()}
    out, state = linear_scan(**mixed)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    out, state = linear_scan(**{**mixed, "log_decay": case["log_decay"], "state": case["state"]})
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "scalar" in kind or "vector" in kind])
@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_strong_decay_is_exact(kind: str, form: str, dtype: torch.dtype) -> None:
    """Weak decay after a strong one: a difference of two long sums would lose precision."""
    exact = scan_case(kind, 67)
    strengths = torch.tensor([0.0, -1e-3, -0.3, -30.0, -1e4, -torch.inf], dtype=torch.float64)
    index = torch.randint(6, exact["log_decay"].shape, generator=torch.Generator().manual_seed(3))
    exact["log_decay"] = strengths[index]

    def run(case: Case, form: str) -> tuple[Tensor, ...]:
        case = leaves(case)
        out, state = linear_scan(**case, form=form, chunk=32)
        with torch.autograd.set_detect_anomaly(True):  # raises for a NaN in between too
            return out, state, *torch.autograd.grad(out.square().sum() + state.sum(), tuple(case.values()))

    results = run({name: x.to(dtype) for name, x in exact.items()}, form)
    for result, expected in zip(results, run(exact, "recurrent"), strict=True):
        assert result.isfinite().all()
        error = (result.double() - expected).abs().max() / expected.abs().max()
        assert error < (1e-13 if dtype == torch.float64 else 3e-6)


@every_kind
def test_numerical_and_second_gradients(kind: str) -> None:
    names, tensors = zip(*scan_case(kind, 19).items(), strict=True)
    inputs = tuple((x[:1] if x.dim() > 1 else x).clone().requires_grad_() for x in tensors)

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return linear_scan(**dict(zip(names, values, strict=True)), chunk=8)

    torch.autograd.gradcheck(run, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", ["plain", "constant decay", "delta rule, vector decay"])
def test_gradients_of_single_inputs(kind: str) -> None:
    case = leaves(scan_case(kind, 37))
    expected = torch.autograd.grad(loss(case), tuple(case.values()))
    for (name, x), gradient in zip(case.items(), expected, strict=True):
        others = {other: x.detach() for other, x in case.items()}
        alone = loss({**others, name: x})
        torch.testing.assert_close(torch.autograd.grad(alone, x)[0], gradient, rtol=0, atol=1e-12)


@every_kind
def test_vmap_and_grad(kind: str) -> None:
    cases = [scan_case(kind, 37, seed=seed) for seed in (0, 1)]
    both = {name: torch.stack([case[name] for case in cases]) for name in cases[0]}
    gradients, losses = torch.func.vmap(torch.func.grad_and_value(loss))(both)
    for i, case in enumerate(map(leaves, cases)):
        value = loss(case)
        torch.testing.assert_close(losses[i], value, rtol=1e-12, atol=0)
        for name, gradient in zip(case, torch.autograd.grad(value, tuple(case.values())), strict=True):
            torch.testing.assert_close(gradients[name][i], gradient, rtol=0, atol=1e-10)


@every_kind
def test_backward_saves_the_inputs_and_one_state_per_block(kind: str) -> None:
    case = leaves(scan_case(kind, 160))
    saved: dict[int, int] = {}

    def save(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        linear_scan(**case, chunk=4)
    input_bytes = sum(x.nbytes for x in case.values())
    cleared = case["log_decay"].numel() if "a" in case and "log_decay" in case else 0  # a Boolean per decay
    blocks = 160 // (2 * 4)
    assert input_bytes <= sum(saved.values()) <= input_bytes + (blocks - 1) * case["state"].nbytes + cleared


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.size = max(self.size, x.numel())
        return result


@every_kind
def test_no_tensor_is_larger_than_the_inputs(kind: str) -> None:
    case = leaves(scan_case(kind, 640))
    with Largest() as largest:
        loss(case).backward()
    assert largest.size == case["v"].numel()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["scalar decay", "vector decay"])
def test_two_compiled_graphs_serve_every_length(kind: str) -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda case: linear_scan(**case, chunk=4), backend=backend, fullgraph=True, dynamic=True)
    for N in (37, 48, 601, 3, 4):
        torch.testing.assert_close(compiled(scan_case(kind, N)), linear_scan(**scan_case(kind, N)), rtol=0, atol=1e-10)
    assert len(graphs) == 2  # many chunks, and one


@pytest.mark.slow
def test_the_delta_rule_compiles() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda case: linear_scan(**case, chunk=8), backend="eager", fullgraph=True)
    case = scan_case("delta rule, scalar decay", 37)
    torch.testing.assert_close(compiled(case), linear_scan(**case), rtol=0, atol=1e-10)
