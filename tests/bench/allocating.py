"""Modules that the process for memory can import: it allocates, fails, or ends."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from attnlab.nn.card import UnsupportedError


class Allocating(nn.Module):
    """Holds ``size`` bytes at most; keeps some of them after the first call."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.kept = size, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        print("a layer may print")
        if not len(self.kept):
            self.kept = torch.empty(7_000_000, dtype=torch.uint8)
        torch.empty(self.size // 3, dtype=torch.uint8)  # released before the next
        first = torch.empty(self.size // 2, dtype=torch.uint8)
        second = torch.empty(self.size // 2, dtype=torch.uint8)
        del first, second
        return x


class Ending(nn.Module):
    """Ends its process as the system does when memory runs out."""

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x


class Unsupported(nn.Module):
    """Refuses every call."""

    def forward(self, x: Tensor) -> Tensor:
        raise UnsupportedError("not here")
