"""Linear attention (Katharopoulos et al. 2020)."""

from .linear import LinearAttention as LinearAttention
