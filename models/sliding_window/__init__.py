"""Sliding window: one line that describes the mechanism."""

from .sliding_window import SlidingWindowAttention as SlidingWindowAttention
