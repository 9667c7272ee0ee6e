"""Whether what a tensor holds may decide how a computation goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
"""The dispatch modes of `FakeTensorMode` and `make_fx`, under which tensors hold no values that could be read."""


def may_read(device: torch.device) -> bool:
    """Whether a number may decide: not where that waits for a device, nor where there are no numbers yet."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not _is_traced()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
    )


def may_cache() -> bool:
    """Whether a tensor that is made now can be kept for later calls: not a symbolic one of a trace."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_traced())  # type: ignore[attr-defined, no-untyped-call]


def may_check(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be checked now, without waiting for a device."""
    return type(tensor) in (Tensor, nn.Parameter) and may_read(tensor.device)


def holds_values(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be shown, on whatever device."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and may_read(torch.device("cpu"))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision that autocast chooses on this device; None where it is off or does not exist."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _is_traced() -> bool:
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING)
