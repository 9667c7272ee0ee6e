"""Layers, inputs and comparisons that the tests of several mechanisms share."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from attnlab.network.pruning import prune_heads
from attnlab.nn.multihead import MultiHeadBase

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

Layer = TypeVar("Layer", bound=MultiHeadBase)


def perturbed(layer: Layer) -> Layer:
    """The layer in float64 and eval mode, its trainable parameters moved away from their initial values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3)
    return layer.eval()


def random(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    """Normal values, the same for the same shape."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return (values * scale).to(dtype)


def padding_lengths(B: int, N: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Lengths (B,), for B up to 3, and which positions are real, Boolean (B, N)."""
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    return lengths, torch.arange(N) < lengths[:, None]


def assert_same(actual: Tensor | None, expected: Tensor | None, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def assert_same_gradients(
    ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], atol: float | None = None
) -> None:
    """Compare two outputs and the gradients of a random linear function of each for its own sources."""
    atol = TOLERANCE[ours[0].dtype] if atol is None else atol
    assert_same(ours[0], theirs[0], atol)
    direction = random(*ours[0].shape, dtype=ours[0].dtype) / max(ours[0].shape[0], 4)
    gradients = (
        torch.autograd.grad((out * direction).sum(), sources, retain_graph=True) for out, sources in (ours, theirs)
    )
    for actual, expected in zip(*gradients, strict=True):
        assert_same(actual, expected, atol)


def assert_pruning_is_exact(layer: Layer, pruned: list[int], x: Tensor, **inputs: Any) -> Layer:
    """Compare the pruned layer with the layer whose output ignores these heads; return the pruned layer."""
    small, masked, d = prune_heads(layer, pruned), copy.deepcopy(layer), layer.head_dim
    with torch.no_grad():
        for head in pruned:
            masked.output.weight[:, head * d : (head + 1) * d] = 0
    assert_same(small(x, **inputs), masked(x, **inputs))
    kept = [head for head in range(layer.num_heads) if head not in pruned]
    assert_same(small.attention_weights(x, **inputs), layer.attention_weights(x, **inputs)[:, kept])
    return small


def naive_of_fla(operation: str, function: str) -> Any:
    """A naive function of flash-linear-attention, loaded from its file, since the package itself needs Triton."""
    pytest.importorskip("einops")
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        pytest.skip("flash-linear-attention is not installed")
    path = f"{package.submodule_search_locations[0]}/ops/{operation}/naive.py"
    spec = importlib.util.spec_from_file_location(f"fla_naive_{operation}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)
