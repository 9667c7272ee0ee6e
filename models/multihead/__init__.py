"""Multi-head attention."""

from .multihead import MultiAttention as MultiAttention
