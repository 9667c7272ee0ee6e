"""Strided and fixed sparse attention."""

from .strided import StridedAttention as StridedAttention
