"""Grouped-query attention."""

from .groupedquery import GroupedQueryAttention as GroupedQueryAttention
