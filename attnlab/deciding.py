"""Whether what a tensor holds may decide how a computation goes."""

from __future__ import annotations

import torch


def may_read(device: torch.device) -> bool:
    """Whether a number may decide: not where that waits for a device, nor where there are no numbers yet."""
    return (
        device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
    )
