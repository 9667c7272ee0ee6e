"""Whether what a tensor holds may decide how a computation goes."""

from __future__ import annotations

import torch

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


def _is_traced() -> bool:
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING)
