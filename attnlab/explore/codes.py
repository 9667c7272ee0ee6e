"""One byte per attention weight, as thumbnails and exported pages hold them.

A code is proportional to the square root of the weight, so that small weights, of which there are most, are told apart.
``peak`` is the largest weight of the head, and ``levels`` the code that stands for it (with a sign, half of that):

unsigned: w = peak · (c / levels)²; signed: w = ± peak · ((c − 128) / h)² with h = ⌊levels / 2⌋ and the sign of c − 128.

The error is at most peak / levels, with a sign peak / h.
"""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor

LEVELS = 255
"""The most levels that a byte can hold."""


def encode(weights: Tensor, peak: Tensor, *, signed: bool, levels: int = LEVELS) -> Tensor:
    """Return the codes, uint8, of the shape of ``weights``; ``peak`` must be broadcastable to it."""
    share = (weights / torch.where(peak > 0, peak, 1.0)).clamp(-1, 1)
    root = share.abs().sqrt()
    if signed:
        return (128 + (levels // 2 * root * share.sign()).round()).to(torch.uint8)
    return (levels * root).round().to(torch.uint8)


def decode(codes: Tensor, peak: Tensor, *, signed: bool, levels: int = LEVELS) -> Tensor:
    """Return the weights that these codes stand for, float32."""
    if not signed:
        return peak * (codes.float() / levels).square()
    root = (codes.float() - 128) / (levels // 2)
    return peak * root.square() * root.sign()


def rounding(peak: float, levels: int, *, signed: bool) -> float:
    """Return the largest error of a weight that is encoded with these levels."""
    return peak / (levels // 2 if signed else levels)


def deflated(data: bytes) -> str:
    """Return ``data`` compressed by zlib (the browser's "deflate") and in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
