"""Submodules are called, never read by ``.weight``: adapters, hooks, quantization and pruning act on every path."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import M, N, Subject, first_line
from attnlab.checks.probes import difference, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import causal, padding, sliding_window
from attnlab.nn.cache import KVCache

BLOCK = 67
RANK = 2
FACTOR = 1.5
"""By which a forward hook scales the output of a submodule."""

QUANTIZED = 0.1
"""How far int8 weights may move an output, relative to the largest."""

Way = tuple[str, bool, Callable[[nn.Module], Tensor]]
"""How to call a layer, in words; whether it must be causal; the call."""


@promise("submodules are called", needs=("contract",))
def submodules_are_called(subject: Subject) -> Measure:
    """The difference between a changed submodule and the same change merged into its weights, on every path.

    Each submodule of `torch.nn` that owns parameters is replaced by a module without a ``weight`` that adds a low-rank
    delta, as LoRA does, and by one with a forward hook.
    """

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            names = [name for name, module in subject.build(causality).named_modules() if _can_merge(name, module)]
            if not names:
                raise NotClaimed("it has no submodule of torch.nn with parameters")
            for change in (_add_delta, _scale_by_hook):
                wrapped, merged = subject.build(causality), subject.build(causality)
                for name in names:
                    change(wrapped, merged, name, subject)
                for how, way in _ways(subject, causality):
                    try:
                        found = way(wrapped)
                    except Exception as error:
                        raise Broken(f"{first_line(error)} ({how}, {', '.join(names)} changed)") from error
                    yield difference(found, way(merged)), f"{how}: {change.__doc__} in {', '.join(names)}"

    return worst(measured(), subject.exact)


@promise("dynamic quantization runs", needs=("contract",))
def quantized(subject: Subject) -> Measure:
    """The difference that ``quantize_dynamic`` makes to outputs in float32, relative to the largest; on a CPU."""
    if subject.device.type != "cpu" or torch.backends.quantized.engine == "none":
        raise NotClaimed("torch quantizes linear layers to int8 on a CPU alone")

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality, dtype=torch.float32)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.ao.quantization is deprecated in favour of torchao
                int8 = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
                for how, way in _ways(subject, causality, torch.float32):
                    try:
                        found = way(int8)
                    except Exception as error:
                        raise Broken(f"{first_line(error)} ({how})") from error
                    expected = way(layer)
                    yield difference(found, expected), f"{how}, quantized to int8"

    return worst(measured(), QUANTIZED)


@promise("pruned layers train", needs=("contract",))
def pruned(subject: Subject) -> Measure:
    """The difference between two steps of SGD on a layer pruned by `torch.nn.utils.prune` and on masked weights."""

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            names = [name for name, module in subject.build(causality).named_modules() if isinstance(module, nn.Linear)]
            for how, way in _ways(subject, causality, grad=True):
                layer, plain = subject.build(causality, train=True), subject.build(causality, train=True)
                masks = {}
                for name in names:
                    module = layer.get_submodule(name)
                    prune.l1_unstructured(module, "weight", amount=0.3)
                    masks[name] = module.get_buffer("weight_mask")
                for _ in range(2):
                    with torch.no_grad():
                        for name in names:
                            plain.get_submodule(name).get_parameter("weight").mul_(masks[name])
                    outs = []
                    for trained in (layer, plain):
                        trained.zero_grad()
                        try:
                            out = way(trained)
                            out.square().sum().backward()
                        except Exception as error:
                            raise Broken(f"{first_line(error)} ({how}, pruned)") from error
                        with torch.no_grad():
                            for parameter in trained.parameters():
                                if parameter.grad is not None:
                                    parameter.sub_(0.01 * parameter.grad)
                        outs.append(out.detach())
                    yield difference(*outs), f"{how}, pruned"

    return worst(measured(), subject.exact)


def _ways(
    subject: Subject, causality: bool, dtype: torch.dtype = torch.float64, *, grad: bool = False
) -> list[tuple[str, Callable[[nn.Module], Tensor]]]:
    """The paths through a layer: self-attention, masks, bias, context, the weights and cached steps."""
    x, long = subject.tokens(dtype=dtype), subject.tokens(1, BLOCK, dtype=dtype)
    ways: dict[str, Callable[[nn.Module], Tensor]] = {
        "self-attention": lambda layer: subject(layer, x),
        f"self-attention over {BLOCK} tokens": lambda layer: subject(layer, long),
    }
    if "padding" in subject.claims:
        mask = padding(torch.tensor([N, N - 3], device=x.device))
        ways["padding"] = lambda layer: subject(layer, x, mask)
    if "arbitrary_mask" in subject.claims:
        ways["a window"] = lambda layer: subject(layer, long, sliding_window(5))
    if "attn_bias" in subject.claims:
        bias = subject.random(2, subject.num_heads, N, N, seed=2).to(dtype)
        ways["a bias"] = lambda layer: subject(layer, x, attn_bias=bias)
    if "context" in subject.claims:
        context = subject.tokens(length=N if causality else M, dtype=dtype, seed=1)
        ways["cross-attention"] = lambda layer: subject(layer, x, context=context)
    if grad:
        return list(ways.items())
    if "weights" in subject.claims:
        ways["the core"] = lambda layer: layer.attention_map(x).materialize()  # type: ignore[operator]
        ways["the weights"] = lambda layer: subject.attention_weights(layer, x)
        if "mix" in subject.claims:
            ways["mix"] = lambda layer: subject.apply_weights(layer, subject.attention_weights(layer, x), x)
    if "cache" in subject.claims and (causality or "arbitrary_mask" in subject.claims):
        ways["cached steps"] = lambda layer: _in_steps(layer, x, None if causality else causal())
    return list(ways.items())


@torch.no_grad()
def _in_steps(layer: nn.Module, x: Tensor, mask: object) -> Tensor:
    cache = getattr(layer, "make_cache", KVCache)(N)
    return torch.cat([layer(part, mask=mask, cache=cache) for part in x.split([N - 3, 1, 2], 1)], 1)


class _WithDelta(nn.Module):
    """A module in place of another, to whose output it adds; it has no ``weight``."""

    def __init__(self, inner: nn.Module, delta: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.delta = inner, delta

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out + self.delta(x, out)


def _can_merge(name: str, module: nn.Module) -> bool:
    return bool(name) and isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm)


def _add_delta(wrapped: nn.Module, merged: nn.Module, name: str, subject: Subject) -> None:
    """A low-rank delta"""
    parent, _, last = name.rpartition(".")
    module, target = wrapped.get_submodule(name), merged.get_submodule(name)
    delta: Callable[[Tensor, Tensor], Tensor]
    with torch.no_grad():
        if isinstance(module, nn.Linear) and isinstance(target, nn.Linear):
            down = subject.random(module.in_features, RANK, seed=6)
            up = subject.random(RANK, module.out_features, seed=7) / RANK
            delta = lambda x, out: x @ down.to(x.dtype) @ up.to(x.dtype)  # noqa: E731
            target.weight += (down @ up).T
        elif isinstance(module, nn.Embedding) and isinstance(target, nn.Embedding):
            table = subject.random(*module.weight.shape, seed=6)
            delta = lambda x, out: nn.functional.embedding(x, table)  # noqa: E731
            target.weight += table
        else:
            delta = lambda x, out: 0.5 * out  # noqa: E731
            for parameter in target.parameters(recurse=False):
                parameter.mul_(1.5)
    setattr(wrapped.get_submodule(parent), last, _WithDelta(module, delta))


def _scale_by_hook(wrapped: nn.Module, merged: nn.Module, name: str, subject: Subject) -> None:
    """A forward hook"""
    wrapped.get_submodule(name).register_forward_hook(lambda module, inputs, out: FACTOR * out)
    with torch.no_grad():
        for parameter in merged.get_submodule(name).parameters(recurse=False):
            parameter.mul_(FACTOR)
