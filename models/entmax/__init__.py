"""Sparse attention by α-entmax."""

from .entmax import EntmaxAttention as EntmaxAttention
