"""Attention with sinks."""

from .sinks import SinkAttention as SinkAttention
