"""Forgetting attention."""

from .forgetting import ForgettingAttention as ForgettingAttention
