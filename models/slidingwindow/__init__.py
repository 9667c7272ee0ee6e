"""Sliding-window attention."""

from .slidingwindow import SlidingWindowAttention as SlidingWindowAttention
