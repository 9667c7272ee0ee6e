"""Stick-breaking attention (Tan et al. 2024)."""

from .stickbreaking import StickBreakingAttention as StickBreakingAttention
