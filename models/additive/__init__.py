"""Additive attention."""

from .additive import AdditiveAttention as AdditiveAttention
