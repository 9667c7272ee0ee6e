"""Reformer attention (Kitaev et al. 2020)."""

from .reformer import ReformerAttention as ReformerAttention
