"""Whether tensors have values that a computation may depend on, or that may be kept for later calls.

The functions are flat, because every forward pass calls them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_FAKE = torch._C._TorchDispatchModeKey.FAKE
_PROXY = torch._C._TorchDispatchModeKey.PROXY
"""The dispatch modes of `FakeTensorMode` and `make_fx`, under which tensors have no values."""


def can_inspect_values(tensor: Tensor) -> bool:
    """Whether a computation may depend on the values of this tensor: eagerly on a CPU, and not of a subclass.

    On another device reading a value would wait for the device; in a trace there are no values.
    """
    kind = type(tensor)
    return (
        (kind is Tensor or kind is nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_dispatch_mode(_FAKE) is None
        and torch._C._get_dispatch_mode(_PROXY) is None
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
    )


def can_inspect_device(device: torch.device) -> bool:
    """Whether a computation may depend on the values of plain tensors on this device."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_dispatch_mode(_FAKE) is None
        and torch._C._get_dispatch_mode(_PROXY) is None
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
    )


def can_keep_tensors() -> bool:
    """Whether a tensor that is made now can be kept for later calls: not in a trace."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._get_dispatch_mode(_FAKE) is not None
        or torch._C._get_dispatch_mode(_PROXY) is not None
        or torch._C._are_functorch_transforms_active()
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has values, on any device: eagerly, and not of a subclass.

    A computation on it may be split in parts that depend on shapes, which needs no value.
    """
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and can_inspect_device(torch.device("cpu"))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None where it is off or does not exist."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on this device."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def widest_dtype(device: torch.device) -> torch.dtype:
    """The most precise dtype of a device: float64, or float32 on Apple GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64
