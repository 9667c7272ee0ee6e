"""Differential attention."""

from .differential import DifferentialAttention as DifferentialAttention
