"""Gated linear attention (Yang et al. 2023)."""

from .gatedlinear import GatedLinearAttention as GatedLinearAttention
