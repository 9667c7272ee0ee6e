"""Native sparse attention."""

from .nsa import NativeSparseAttention as NativeSparseAttention
