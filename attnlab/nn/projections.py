"""Linear projections: their initialization, their parameters from other layers, and the names in state dicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

T = TypeVar("T")


def make_linear(
    fan_in: int,
    fan_out: int,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """Return an `nn.Linear` whose weight has the variance 1/fan_in (a fixed 0.02 is too small for narrow layers)."""
    layer = nn.Linear(fan_in, fan_out, bias=bias, device=device, dtype=dtype)
    reset_linear(layer)
    return layer


def reset_linear(layer: nn.Linear) -> None:
    """Initialize the weight with the variance 1/fan_in, and the bias with zeros."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def reset_children(module: nn.Module) -> None:
    """Initialize the parameters of all submodules again."""
    for child in module.children():
        if isinstance(child, nn.Linear):
            reset_linear(child)
        elif callable(reset := getattr(child, "reset_parameters", None)):
            reset()
        else:
            reset_children(child)


class LowRank(nn.Module):
    """``activation(x W_down) W_up``: two projections with ``rank`` features in between; no activation by default.

    The bias is that of ``up``.
    """

    def __init__(
        self,
        fan_in: int,
        rank: int,
        fan_out: int,
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = make_linear(fan_in, rank, bias=False, device=device, dtype=dtype)
        self.up = make_linear(rank, fan_out, bias=bias, device=device, dtype=dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection of each token."""
        inner = self.down(x)
        return self.up(inner if self.activation is None else self.activation(inner))


def plain_weight(layer: nn.Module) -> Tensor | None:
    """Return the weight of a projection whose call computes ``x W^T`` and nothing else; None for any other module.

    Adapters, hooks, parametrizations, quantization and offloading replace the class, the parameter or ``forward``, or
    register a hook: the module must then be called.
    """
    if type(layer) is not nn.Linear or layer.bias is not None or type(layer.weight) is not nn.Parameter:
        return None
    hooked = layer._forward_hooks or layer._forward_pre_hooks or _global_forward_hooks or _global_forward_pre_hooks
    return None if hooked or "forward" in vars(layer) else layer.weight


def copy_weights(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Copy a weight and a bias into a projection; with ``bias=None`` its own bias stays."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


def current_state(module: nn.Module, entries: Mapping[str, T], prefix: str = "") -> dict[str, T]:
    """Return the entries of a state dict of ``module`` under the keys that this version uses.

    Args:
        module: a layer, or a network that holds layers.
        entries: anything by state-dict key.
        prefix: precedes the module's own keys.
    """
    renamed = {
        f"{prefix}{path}.{old}" if path else prefix + old: f"{prefix}{path}.{new}" if path else prefix + new
        for path, layer in module.named_modules()
        for old, new in getattr(type(layer), "renamed_keys", {}).items()
    }
    return {_current_key(key, renamed): value for key, value in entries.items()}


def rename_keys(state_dict: dict[str, Any], renamed: Mapping[str, str]) -> None:
    """Rename the entries of a state dict in place."""
    for key in list(state_dict) if renamed else ():
        state_dict[_current_key(key, renamed)] = state_dict.pop(key)


def _current_key(key: str, renamed: Mapping[str, str]) -> str:
    """Return the key with the new name of the part that it starts with."""
    parts = key.split(".")
    starts = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((renamed[start] + key[len(start) :] for start in starts if start in renamed), key)
