"""The kernels of fla-core: when a recurrence calls them, with which arguments, and with which results."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recurrence_cases import GATES, HV, H, K, case_of, every_op, gradients, leaves, near, run, start
from torch import Tensor

from attnlab import ops
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.scan import kernels

pytestmark = pytest.mark.usefixtures("short_blocks")


@pytest.fixture
def fake_kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Kernels with the names of fla's that compute ours in float32, for bfloat16 inputs; returns their calls."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def kernel(name: str) -> Callable[..., Any]:
        def run_kernel(**arguments: Any) -> Any:
            calls.append((name, arguments))
            floats = [n for n, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()]
            wide = arguments | {n: arguments[n].float() for n in floats}
            decay = wide.pop("g_gamma", None)
            if decay is not None:
                wide["g"] = decay.expand(wide["q"].shape[:3])
            elif name == "simple_gla" and "g" not in wide:
                wide["g"] = torch.zeros(wide["q"].shape[:3])
            out, last = getattr(ops, name)(**wide)
            return out.to(arguments["v"].dtype), last

        return run_kernel

    for module, function in kernels.KERNELS.values():
        name = function.removeprefix("chunk_")
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: kernel(name)}))
    monkeypatch.setattr(kernels, "applies", lambda name, q, k, v: q.dtype == torch.bfloat16)
    return calls


@every_op
@pytest.mark.parametrize("heads", [H, HV])
def test_a_kernel_gets_the_arguments(name: str, heads: int, fake_kernels: list[Any]) -> None:
    case = leaves(case_of(name, 37, torch.bfloat16, batch=1, heads=heads))
    state = start(2, heads, torch.bfloat16).requires_grad_()
    options: dict[str, Any] = {"initial_state": state, "cu_seqlens": torch.tensor([0, 11, 37])}
    if "beta" in case:
        options["use_qk_l2norm_in_kernel"] = True
    with record_dispatch() as records:
        ours = run(name, **case, **options)
    assert records[0].name == "fla"
    expected = run(name, **{n: x.float() for n, x in case.items()}, **options)
    near(ours, expected, 0.01)
    inputs = case | {"initial_state": state}
    near(gradients(ours, inputs), gradients(expected, inputs), 0.03)
    (_, arguments), *_ = fake_kernels
    assert arguments["initial_state"].dtype == torch.float32
    shared = H if name in kernels.GROUPED else heads
    assert arguments["k"].shape == (1, 37, shared, K)
    for gate in GATES[name]:
        assert arguments[gate] is case[gate]
    if name not in ("linear_attention", "retention"):
        assert arguments.keys() - {"output_final_state"} == case.keys() | options.keys() | {"scale"}


@pytest.mark.parametrize("kernel", sorted(set(kernels.KERNELS.values())))
def test_the_kernels_of_fla_take_these_arguments(kernel: tuple[str, str]) -> None:
    module, function = kernel
    package = importlib.util.find_spec("fla")
    if package is None:
        pytest.skip("fla-core is not installed; pip install 'attnlab[parity]'")
    folder = Path(package.submodule_search_locations[0]).parent / module.replace(".", "/")
    assert f'"{function}"' in (folder / "__init__.py").read_text("utf-8").replace("'", '"')
    tree = ast.parse((folder / "chunk.py").read_text("utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    taken = {argument.arg for argument in node.args.args}
    name = function.removeprefix("chunk_")
    wanted = {"k", "v", "scale", "initial_state", "output_final_state", "cu_seqlens", *GATES[name]}
    wanted |= {"r"} if name == "rwkv7" else {"q"}
    wanted |= {"use_qk_l2norm_in_kernel"} if "beta" in wanted else set()
    wanted |= {"g_gamma"} if name == "simple_gla" else set()
    assert wanted <= taken


@pytest.mark.usefixtures("fake_kernels")
def test_second_derivatives_of_a_kernel_raise() -> None:
    case = leaves(case_of("simple_gla", 11, torch.bfloat16))
    for result in run("simple_gla", **case):
        with pytest.raises(RuntimeError, match=r"no second derivatives .* convert the inputs to float32"):
            torch.autograd.grad(result.float().sum(), case["v"], create_graph=True)


def test_kernels_apply_on_cuda_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_installed", lambda: True)

    def tensor(**changes: Any) -> Any:
        return SimpleNamespace(**{"is_cuda": True, "dtype": torch.bfloat16, "shape": (1, 2, 3, 64), **changes})

    v = tensor(numel=lambda: 1)
    assert kernels.applies("gla", tensor(), tensor(), v)
    assert not kernels.applies("gla", tensor(is_cuda=False), tensor(), v)
    assert not kernels.applies("gla", tensor(dtype=torch.float32), tensor(dtype=torch.float32), v)
    assert not kernels.applies("gla", tensor(), tensor(dtype=torch.float16), v)
    assert not kernels.applies("gla", tensor(shape=(1, 2, 3, 257)), tensor(), v)
    assert not kernels.applies("gla", tensor(), tensor(), tensor(numel=lambda: 0))
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    assert not kernels.applies("gla", tensor(), tensor(), v)


@pytest.mark.parametrize(
    ("triton", "capability", "tilelang", "refused"),
    [
        ("3.6.0", (9, 0), False, True),
        ("3.4.0+git1", (9, 0), False, True),
        ("3.6.0a1", (9, 0), False, True),
        ("3.3.9", (9, 0), False, False),
        ("3.7.1", (9, 0), False, False),
        ("3.6.0", (8, 0), False, False),
        ("3.6.0", (9, 0), True, False),
    ],
)
def test_kernels_without_a_backward_pass_are_not_used(
    triton: str, capability: tuple[int, int], tilelang: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))
    monkeypatch.setattr(kernels, "find_spec", lambda name: name if tilelang else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernels._is_refused.cache_clear()
    q: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(1, 2, 3, 64), device="cuda", numel=lambda: 1)
    assert kernels.applies("gated_delta_rule", q, q, q) is not refused
    assert kernels.applies("kda", q, q, q)
    kernels._is_refused.cache_clear()


@pytest.mark.gpu
@every_op
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_match_ours(name: str, packed: bool) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("fla")
    generator = torch.Generator().manual_seed(0)
    T, heads, width = 257, 4, 64
    draws = {n: torch.randn(1, T, heads, width, generator=generator) for n in ("q", "k", "v", "a")}
    decay = F.logsigmoid(torch.randn(1, T, heads, width, generator=generator) + 3)
    unit = F.normalize(draws["a"], dim=-1)
    made = {
        "g": decay if name in ("gla", "kda") else decay[..., 0],
        "w": decay,
        "beta": torch.randn(1, T, heads, generator=generator).sigmoid(),
        "a": -unit,
        "b": unit * 0.5,
    }
    tensors = {"r" if name == "rwkv7" else "q": draws["q"], "k": F.normalize(draws["k"], dim=-1), "v": draws["v"]}
    inputs = {n: x.cuda().bfloat16() for n, x in (tensors | {gate: made[gate] for gate in GATES[name]}).items()}
    inputs |= {n: inputs[n].float() for n in ("g", "w") if n in inputs}
    inputs["initial_state"] = torch.randn(2 if packed else 1, heads, width, width, generator=generator).cuda()
    inputs = leaves(inputs)
    options = {"cu_seqlens": torch.tensor([0, 100, T]).cuda()} if packed else {}
    with record_dispatch() as records:
        ours = run(name, **inputs, **options)
    if name in kernels.REFUSED_ON_HOPPER and kernels._is_refused(torch.device("cuda", 0)):
        pytest.skip("fla refuses the gradients of this kernel on this GPU with this Triton")
    assert [r.name for r in records] == ["fla"]
    expected = run(name, **{n: x.float() for n, x in inputs.items()}, **options)
    for x, y in zip((*ours, *gradients(ours, inputs)), (*expected, *gradients(expected, inputs)), strict=True):
        assert (x.float() - y.float()).norm() < 0.02 * y.float().norm()
