"""The arguments of the recurrences as functions, for their tests; sizes are distinct primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab import ops

Case = dict[str, Tensor]
B, H, HV, K, V = 2, 3, 6, 5, 7
GATES = {
    "linear_attention": (),
    "retention": (),
    "simple_gla": ("g",),
    "gla": ("g",),
    "delta_rule": ("beta",),
    "gated_delta_rule": ("g", "beta"),
    "kda": ("g", "beta"),
    "rwkv7": ("w", "a", "b"),
}
every_op = pytest.mark.parametrize("name", GATES)


def case_of(name: str, T: int, dtype: torch.dtype = torch.float64, *, batch: int = B, heads: int = H) -> Case:
    """The tensors of one call; keys and a have norm 1, and w and a a decay that keeps the state bounded."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(batch, T, *shape, dtype=torch.float64, generator=generator)

    wide = (heads, K) if name in ("gla", "kda", "rwkv7") else (heads,)
    first = "r" if name == "rwkv7" else "q"
    tensors = {first: randn(H, K), "k": F.normalize(randn(H, K), dim=-1), "v": randn(heads, V)}
    made = {
        "g": F.logsigmoid(randn(*wide) + 1),
        "w": F.logsigmoid(randn(heads, K) + 1),
        "beta": randn(heads).sigmoid(),
        "a": -F.normalize(randn(heads, K), dim=-1),
    }
    made["b"] = -made["a"] * randn(heads, 1).sigmoid() * made["w"].exp()
    return {n: x.to(dtype) for n, x in (tensors | {gate: made[gate] for gate in GATES[name]}).items()}


def start(count: int, heads: int = H, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, heads, K, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(name: str, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return getattr(ops, name)(*args, **{"output_final_state": True, **options})


def leaves(case: Case) -> Case:
    return {n: x.detach().clone().requires_grad_() for n, x in case.items()}


def gradients(results: tuple[Tensor | None, ...], inputs: Case) -> list[Tensor]:
    """The gradients of a loss that depends on all results."""
    loss = sum(result.sin().sum() for result in results if result is not None)
    return list(torch.autograd.grad(loss, list(inputs.values())))


def close(actual: Any, expected: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def near(actual: Any, expected: Any, limit: float) -> None:
    """Compare tensors relative to the largest element; the limit is for their dtype, and sums are not short."""
    for x, y in zip(actual, expected, strict=True):
        if y is not None:
            assert (x.double() - y.double()).abs().max() <= limit * max(y.abs().max(), 1)
