"""Chunked attention."""

from .chunked import ChunkedAttention as ChunkedAttention
