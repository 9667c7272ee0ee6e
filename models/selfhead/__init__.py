"""One head of scaled dot-product self-attention."""

from .selfhead import SelfAttention as SelfAttention
