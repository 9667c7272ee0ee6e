"""Submodules are called, never read by ``.weight``: adapters, hooks, quantization and pruning always act."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import LayerUnderTest, M, N
from attnlab.checks.probes import difference, exact, located, typical_difference
from attnlab.checks.registry import Values, check
from attnlab.masks import causal, padding, sliding_window

LENGTH = 67
RANK = 2
FACTOR = 1.5
"""The factor by which a forward hook scales the output of a submodule."""

QUANTIZATION_TOLERANCE = 0.1
"""The largest change of an output by int8 weights, relative to the largest output."""

MERGEABLE = nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm

Call = Callable[[nn.Module], Tensor]


@check("submodules_are_called", needs=("contract",), limit=exact)
def submodules_are_called(case: LayerUnderTest) -> Values:
    """The difference between a modified submodule and the same change merged into its weights, on every code path.

    Each submodule of `torch.nn` that has parameters is replaced by a module without ``weight`` that adds a low-rank
    update, as LoRA does, and by one with a forward hook.
    """
    for is_causal in case.causal_choices:
        modules = case.build(is_causal).named_modules()
        names = [name for name, module in modules if name and isinstance(module, MERGEABLE)]
        if not names:
            raise NotApplicable("it has no submodule of torch.nn with parameters")
        for change in (_add_low_rank, _scale_by_hook):
            wrapped, merged = case.build(is_causal), case.build(is_causal)
            for name in names:
                change(wrapped, merged, name, case)
            for path, call in _calls(case, is_causal).items():
                where = f"{path}, {change.__doc__} in {', '.join(names)}"
                with located(where):
                    out = call(wrapped)
                yield difference(out, call(merged)), where


@check("dynamic_quantization", needs=("contract",), limit=QUANTIZATION_TOLERANCE)
def dynamic_quantization(case: LayerUnderTest) -> Values:
    """The difference between ``quantize_dynamic`` and float32 at the median token; on a CPU."""
    if case.device.type != "cpu" or torch.backends.quantized.engine == "none":
        raise NotApplicable("torch quantizes linear layers to int8 on a CPU only")
    case.require_continuity()
    for is_causal in case.causal_choices:
        layer = case.build(is_causal, dtype=torch.float32)
        with warnings.catch_warnings(action="ignore"):  # torch.ao.quantization is deprecated in favour of torchao
            quantized = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
            for path, call in _calls(case, is_causal, torch.float32).items():
                where = f"{path}, quantized to int8"
                with located(where):
                    out = call(quantized)
                yield typical_difference(out, call(layer)), where


@check("pruning", needs=("contract",), limit=exact)
def pruning(case: LayerUnderTest) -> Values:
    """The difference between two steps of SGD on a layer pruned by `torch.nn.utils.prune` and on masked weights."""
    for is_causal in case.causal_choices:
        names = [name for name, module in case.build(is_causal).named_modules() if isinstance(module, nn.Linear)]
        for path, call in _calls(case, is_causal, grad=True).items():
            pruned, masked = case.build(is_causal, train=True), case.build(is_causal, train=True)
            for name in names:
                prune.l1_unstructured(pruned.get_submodule(name), "weight", amount=0.3)
            for _ in range(2):
                with torch.no_grad():
                    for name in names:
                        kept = pruned.get_submodule(name).get_buffer("weight_mask")
                        masked.get_submodule(name).get_parameter("weight").mul_(kept)
                with located(where := f"{path}, pruned"):
                    outs = [_training_step(layer, call) for layer in (pruned, masked)]
                yield difference(*outs), where


def _training_step(layer: nn.Module, call: Call) -> Tensor:
    layer.zero_grad()
    out = call(layer)
    out.square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.01).step()
    return out.detach()


def _calls(
    case: LayerUnderTest, is_causal: bool, dtype: torch.dtype = torch.float64, *, grad: bool = False
) -> dict[str, Call]:
    """The code paths of a layer: self-attention, masks, bias, context, attention weights and cached steps."""
    x, long = case.tokens(dtype=dtype), case.tokens(1, LENGTH, dtype=dtype)
    calls: dict[str, Call] = {
        "self-attention": lambda layer: case(layer, x),
        f"self-attention over {LENGTH} tokens": lambda layer: case(layer, long),
    }
    if "padding" in case.capabilities:
        mask = padding(torch.tensor([N, N - 3], device=x.device))
        calls["padding"] = lambda layer: case(layer, x, mask)
    if "arbitrary_mask" in case.capabilities:
        calls["a window"] = lambda layer: case(layer, long, sliding_window(5))
    if "attn_bias" in case.capabilities:
        bias = case.random(2, case.num_heads, N, N, seed=2).to(dtype)
        calls["a bias"] = lambda layer: case(layer, x, attn_bias=bias)
    if "context" in case.capabilities:
        context = case.tokens(length=N if is_causal else M, dtype=dtype, seed=1)
        calls["cross-attention"] = lambda layer: case(layer, x, context=context)
    if grad:
        return calls
    if "weights" in case.capabilities:
        calls["attention_map"] = lambda layer: layer.attention_map(x).materialize()  # type: ignore[operator]
        calls["attention_weights"] = lambda layer: case.attention_weights(layer, x)
        if "apply_weights" in case.capabilities:
            calls["apply_weights"] = lambda layer: case.apply_weights(layer, case.attention_weights(layer, x), x)
    if "cache" in case.capabilities and (is_causal or "arbitrary_mask" in case.capabilities):
        calls["cached steps"] = lambda layer: _decode(layer, x, None if is_causal else causal())
    return calls


@torch.no_grad()
def _decode(layer: nn.Module, x: Tensor, mask: object) -> Tensor:
    cache = layer.make_cache(N)  # type: ignore[operator]
    return torch.cat([layer(part, mask=mask, cache=cache) for part in x.split([N - 3, 1, 2], 1)], 1)


class _Sum(nn.Module):
    """The sum of two modules, in place of the first; it has no ``weight``."""

    def __init__(self, inner: nn.Module, update: nn.Module) -> None:
        super().__init__()
        self.inner, self.update = inner, update

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.update(x)
        return out


def _add_low_rank(wrapped: nn.Module, merged: nn.Module, name: str, case: LayerUnderTest) -> None:
    """A low-rank update"""
    parent, _, last = name.rpartition(".")
    module, target = wrapped.get_submodule(name), merged.get_submodule(name)
    update = deepcopy(module)  # the output is linear in the parameters
    with torch.no_grad():
        for change, parameter in zip(update.parameters(), target.parameters(), strict=True):
            *rows, columns = change.shape
            change.copy_(case.random(*rows, RANK, seed=6) @ case.random(RANK, columns, seed=7) / RANK)
            parameter.add_(change)
    setattr(wrapped.get_submodule(parent), last, _Sum(module, update))


def _scale_by_hook(wrapped: nn.Module, merged: nn.Module, name: str, case: LayerUnderTest) -> None:
    """A forward hook"""
    wrapped.get_submodule(name).register_forward_hook(lambda module, inputs, out: FACTOR * out)
    with torch.no_grad():
        for parameter in merged.get_submodule(name).parameters(recurse=False):
            parameter.mul_(FACTOR)
