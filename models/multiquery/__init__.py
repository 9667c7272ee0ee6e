"""Multi-query attention."""

from .multiquery import MultiQueryAttention as MultiQueryAttention
