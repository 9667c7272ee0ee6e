"""DeepSeek sparse attention."""

from .dsa import DeepSeekSparseAttention as DeepSeekSparseAttention
