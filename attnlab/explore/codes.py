"""One byte per attention weight, as thumbnails and exported pages hold them.

A code is proportional to the square root of the weight, so that small weights, of which there are most, are told apart:
the error is at most 0.4 % of the largest weight (0.8 % with a sign). ``peak`` is the largest weight of the head.

unsigned: w = peak · (c / 255)²; signed: w = ± peak · ((c − 128) / 127)², with the sign of c − 128.
"""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor


def encode(weights: Tensor, peak: Tensor, *, signed: bool) -> Tensor:
    """Return the codes, uint8, of the shape of ``weights``; ``peak`` must be broadcastable to it."""
    share = (weights / torch.where(peak > 0, peak, 1.0)).clamp(-1, 1)
    root = share.abs().sqrt()
    if signed:
        return (128 + (127 * root * share.sign()).round()).to(torch.uint8)
    return (255 * root).round().to(torch.uint8)


def decode(codes: Tensor, peak: Tensor, *, signed: bool) -> Tensor:
    """Return the weights that these codes stand for, float32."""
    if not signed:
        return peak * (codes.float() / 255).square()
    root = (codes.float() - 128) / 127
    return peak * root.square() * root.sign()


def deflated(data: bytes) -> str:
    """Return ``data`` compressed by zlib (the browser's "deflate") and in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
