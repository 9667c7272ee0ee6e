"""Layers, inputs and comparisons that the tests of several mechanisms share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab import masks
from peers.adapters.fla import naive

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])

Layer = TypeVar("Layer", bound=nn.Module)
Pairs = Callable[[Callable[[Tensor], Any]], Sequence[tuple[Tensor, Tensor]]]
"""Our parameters and theirs in our layout, each passed through a function that reads its value or its gradient."""


# Layers and inputs


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


def random_biases(layer: Layer) -> Layer:
    """The layer with normal biases, because zero biases would hide mistakes."""
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def padding_lengths(B: int, N: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Lengths (B,), for B up to 3, and which positions are real, Boolean (B, N)."""
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    return lengths, torch.arange(N) < lengths[:, None]


def heads_of(qkv: nn.Linear, x: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values, (B, H, N, d) each."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1)]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A Boolean mask as transformers adds it to the scores."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def no_rotation(N: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosines and sines of zero angles."""
    return torch.ones(1, N, width, dtype=dtype), torch.zeros(1, N, width, dtype=dtype)


# Comparisons


def assert_same(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def assert_same_scaled(actual: Any, expected: Any, atol: float) -> None:
    """Compare gradients: small ones absolutely, large ones relative to their size."""
    scale = 1 + expected.abs()
    assert_same(actual / scale, expected / scale, atol)


def assert_same_gradients(
    ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], atol: float | None = None
) -> None:
    """Compare two outputs and the gradients of a random linear function of each for its own sources."""
    atol = TOLERANCE[ours[0].dtype] if atol is None else atol
    assert_same(ours[0], theirs[0], atol)
    direction = random(*ours[0].shape, dtype=ours[0].dtype) / max(len(ours[0]), 16) ** 0.5
    gradients = (
        torch.autograd.grad((out * direction).sum(), sources, retain_graph=True) for out, sources in (ours, theirs)
    )
    for actual, expected in zip(*gradients, strict=True):
        assert_same_scaled(actual, expected, atol)


def assert_softmax_under(
    layer: Any,
    attends: Callable[[int, int, int], bool],
    shape: tuple[int, int],
    padded: bool,
    heads: Callable[[Callable[[nn.Linear], Tensor]], Tensor] | None = None,
) -> None:
    """Compare a layer with PyTorch's attention under a pattern.

    Args:
        layer: the layer.
        attends: whether query i attends to key j in head h, for (h, i, j); combined with ``causal``.
        shape: B and N.
        padded: whether there is padding.
        heads: the output of the heads, from a function that returns it for a projection; ``layer.qkv`` by default.
    """
    (B, N), H = shape, layer.num_heads
    x = random(B, N, layer.embed_dim, dtype=layer.qkv.weight.dtype).requires_grad_()
    lengths, real = padding_lengths(B, N, padded)
    pattern = torch.tensor([[[attends(h, i, j) for j in range(N)] for i in range(N)] for h in range(H)])
    allowed = (pattern.tril() if layer.causal else pattern) & real[:, None, None, :]
    empty = ~allowed.any(-1, keepdim=True)

    def attend(qkv: nn.Linear) -> Tensor:
        out = F.scaled_dot_product_attention(*heads_of(qkv, x, H), attn_mask=allowed | empty)
        return out.masked_fill(empty, 0.0)

    theirs = layer.output((heads(attend) if heads else attend(layer.qkv)).transpose(1, 2).flatten(2))
    ours, rows = layer(x, mask=masks.padding(lengths) if padded else None), ~empty.all(1).squeeze(-1)
    sources = [x, *layer.parameters()]
    assert_same_gradients((ours[rows], sources), (theirs[rows], sources))


def copy_parameters(pairs: Pairs) -> None:
    """Copy their parameters into our layer."""
    with torch.no_grad():
        for ours, theirs in pairs(lambda parameter: parameter):
            ours.copy_(theirs)


def assert_parity(
    layer: Any,
    theirs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]],
    pairs: Pairs,
    shape: tuple[int, int],
    padded: bool,
    atol: float,
    **inputs: Any,
) -> None:
    """Compare outputs and attention weights at real tokens, and the gradients of the tokens and of all parameters.

    Args:
        layer: our layer.
        theirs: returns their output and attention weights (or None) for tokens and the allowed pairs (B, 1, N, N).
        pairs: the parameters; their gradients are compared.
        shape: B and N.
        padded: whether there is padding.
        atol: the tolerance; that of a large gradient is relative.
        **inputs: further arguments of our layer.
    """
    B, N = shape
    dtype = next(layer.parameters()).dtype
    a, b = (random(B, N, layer.embed_dim, dtype=dtype).requires_grad_() for _ in range(2))
    lengths, real = padding_lengths(B, N, padded)
    inputs["mask"] = masks.padding(lengths) if padded else None
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    expected, weights = theirs(a, allowed.tril() if layer.causal else allowed)
    ours = layer(b, **inputs)
    assert_same(ours[real], expected[real], atol)
    if weights is not None:
        ours_weights = layer.attention_weights(b, **inputs)
        assert_same(ours_weights.transpose(1, 2)[real], weights.transpose(1, 2)[real], atol)
    direction = random(B, N, layer.embed_dim, dtype=dtype)[real] / max(B, 4)
    for out in (ours, expected):
        (out[real] * direction).sum().backward()
    for actual, wanted in [(b.grad, a.grad), *pairs(lambda parameter: parameter.grad)]:
        assert_same_scaled(actual, wanted, atol)


# Layers of other packages


def from_transformers(module: str, name: str, dtype: torch.dtype, *, layer_idx: int = 0, **config: Any) -> Any:
    """The layer ``{name}Attention`` of ``transformers.models.{module}`` with random biases; eager by default."""
    transformers = pytest.importorskip("transformers")
    source = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    config = {"attn_implementation": "eager", **config}
    torch.manual_seed(0)
    made = getattr(source, f"{name}Attention")(getattr(transformers, f"{name}Config")(**config), layer_idx=layer_idx)
    return random_biases(made.to(dtype))


def rotation_of(theirs: Any, N: int, dtype: torch.dtype = torch.float32) -> Any:
    """The cosines and sines of a layer of transformers."""
    source = sys.modules[type(theirs).__module__]
    rotary = getattr(source, type(theirs).__name__.replace("Attention", "RotaryEmbedding"))(theirs.config)
    return rotary(torch.zeros(1, N, 1, dtype=dtype), torch.arange(N)[None])


def assert_parity_with_transformers(
    layer: Any,
    theirs: Any,
    shape: tuple[int, int],
    padded: bool,
    rotation: Any,
    atol: float,
    *,
    pairs: Pairs | None = None,
    weights: bool = False,
) -> None:
    """Copy their parameters into our layer, and compare both (see `assert_parity`).

    Args:
        layer: our layer.
        theirs: their layer.
        shape: B and N.
        padded: whether there is padding.
        rotation: the cosines and sines that their layer takes.
        atol: the tolerance.
        pairs: the parameters; those of `parameters_of_transformers` by default.
        weights: whether their attention weights are compared too.
    """
    pairs = parameters_of_transformers(layer, theirs) if pairs is None else pairs
    copy_parameters(pairs)

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor | None]:
        out, attention = theirs(x, rotation, additive(allowed, x.dtype))
        return out, attention if weights else None

    assert_parity(layer, call, pairs, shape, padded, atol)


def parameters_of_transformers(layer: Any, theirs: Any, **others: str) -> Pairs:
    """Pairs for projections ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``, and others: ``ours="theirs"``."""
    parts = theirs.q_proj, theirs.k_proj, theirs.v_proj

    def pairs(read: Callable[[Tensor], Any]) -> list[tuple[Tensor, Tensor]]:
        found = [(getattr(layer, ours), getattr(theirs, name)) for ours, name in others.items()]
        found += [(p, getattr(theirs.o_proj, name)) for name, p in layer.output.named_parameters()]
        joined = [
            (read(p), torch.cat([read(getattr(part, name)) for part in parts]))
            for name, p in layer.qkv.named_parameters()
        ]
        return [*joined, *((read(own), read(other)) for own, other in found)]

    return pairs


def naive_of_fla(operation: str, function: str) -> Any:
    """A naive function of flash-linear-attention; without the packages it needs, the test is skipped."""
    try:
        return naive(operation, function)
    except ImportError as error:
        pytest.skip(str(error))
