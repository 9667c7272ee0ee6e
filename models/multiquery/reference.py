"""The formula of the paper in plain PyTorch: `multihead.reference`, with keys and values repeated for each group."""

from ..multihead.reference import reference

__all__ = ["reference"]
